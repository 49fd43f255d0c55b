// What the daemons share: HTTP and JSON for this machine alone, a page that tells whether they
// are well, and a clean end.
import { createServer } from 'node:http';

const MOST_BYTES = 1 << 20;

// A request that cannot be served as it is.
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Serve `routes`, as {'POST /x': async (body, parameters) => answer}, on `port` (0: any that is free).
export function serve(name, port, routes) {
  let served = 0;
  const all = { 'GET /health': () => ({ name, healthy: true, pid: process.pid, served }), ...routes };

  const server = createServer(async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    const route = all[`${request.method} ${url.pathname}`];
    try {
      if (!route) throw new Refusal(404, `there is: ${Object.keys(all).join(', ')}`);
      answer(response, 200, await route(await bodyOf(request), url.searchParams));
      served += 1;
    } catch (error) {
      answer(response, error.status ?? 503, { error: error.message });
    }
  });
  server.on('error', error => {
    console.error(`${name}: ${error.message}`);
    process.exit(1);
  });
  server.listen(Number(port), '127.0.0.1', () => {
    console.log(`${name}: ready on http://127.0.0.1:${server.address().port} (pid ${process.pid})`);
  });
  for (const signal of ['SIGTERM', 'SIGINT']) {
    process.once(signal, () => {
      console.log(`${name}: stopped`);
      server.close();
      server.closeAllConnections();
    });
  }
}

function answer(response, status, value) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(`${JSON.stringify(value)}\n`);
}

async function bodyOf(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MOST_BYTES) throw new Refusal(413, `more than ${MOST_BYTES} bytes`);
    chunks.push(chunk);
  }
  if (size === 0) return {};
  try {
    const body = JSON.parse(Buffer.concat(chunks).toString());
    if (body !== null && typeof body === 'object') return body;
  } catch { /* said below */ }
  throw new Refusal(400, 'expected: a JSON object');
}
