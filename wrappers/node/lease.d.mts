/** What stands in the sidecar: docs/design.md. `null` where the holder is unknown. */
export interface Holder {
  schema: number;
  lease: string;
  lease_id: string;
  fence: number;
  task: string;
  owner: string;
  source: string;
  reason: string;
  mode: 'supervised' | 'exec' | 'library' | 'coprocess';
  pid: number;
  hostname: string;
  acquired_at: string;
  ttl_seconds: number;
  job_pid: number | null;
  command: string[];
  cwd: string;
  [field: string]: unknown;
}

export interface LeaseOptions {
  /** Which lease; else the task's in maintlock.toml, else `heavy-maintenance`. */
  lease?: string;
  /** How long to queue: `'10m'`, seconds, or `'forever'`. Without it: not at all, unless maintlock.toml says so. */
  wait?: string | number;
  owner?: string;
  reason?: string;
  /** From then on the holder counts as overdue. */
  ttl?: string | number;
  /** Who asks: `'library'`, or `'orchestrator'` for one that has its own schedule. */
  source?: 'library' | 'orchestrator' | 'cli' | 'npm';
  stateDir?: string;
  /** The program to start: `'maintlock'`. */
  command?: string;
  /** Ends the wait for the lease; `withLease` rejects with its reason then. What already runs is not touched. */
  signal?: AbortSignal;
  /** Takes what maintlock has to say that is no error, such as for whom we wait; by default it goes to stderr. */
  log?: (line: string) => void;
}

export interface Lease {
  readonly lease: string;
  readonly id: string;
  /** Rises with every grant. */
  readonly fence: number;
  readonly task: string;
  /** For the environment of children, `{ ...process.env, ...lease.env }`: they are part of this work then. */
  readonly env: Readonly<Record<string, string>>;
  /** Aborted, with a `LeaseEnding`, when somebody asks to stop or the helping process dies. The lease stays ours. */
  readonly signal: AbortSignal;
  /** Tells whether somebody waits for the lease (for `after` at least), or is starved of it: then end early. */
  shouldYield(options?: { after?: string | number }): Promise<boolean>;
}

/** Somebody else has the lease, at once or until the wait was over. No failure. */
export declare class LeaseHeld extends Error {
  readonly name: 'LeaseHeld';
  readonly task: string;
  readonly lease: string | undefined;
  readonly reasonCode: 'lease-held' | 'queued' | 'wait-timeout' | 'survivors' | 'lockfile-replaced';
  readonly holder: Holder | null;
}

/** The lease cannot be had here. */
export declare class LeaseUnavailable extends Error {
  readonly name: 'LeaseUnavailable';
  /** As of `maintlock-wrap`: 64 70 73 77 78, or 127 where maintlock is missing. */
  readonly exitCode: number | undefined;
}

/** The reason of an aborted `lease.signal`. */
export declare class LeaseEnding extends Error {
  readonly name: 'LeaseEnding';
}

/**
 * Run `fn` under the lease of `task`, and resolve to what it resolves to.
 *
 * Inside `fn`, and in what it calls, another `withLease` joins; anywhere else in the process it is a request like any other.
 */
export declare function withLease<T>(task: string, fn: (lease: Lease) => T | PromiseLike<T>, options?: LeaseOptions): Promise<T>;
