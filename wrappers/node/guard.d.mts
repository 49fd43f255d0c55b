// A side effect only: import './maintlock/guard.mjs?task=NAME'
// TypeScript does not find this file behind the `?`; for each query a project needs, in a .d.ts file of its own:
//     declare module '*/guard.mjs?task=NAME';
export {};
