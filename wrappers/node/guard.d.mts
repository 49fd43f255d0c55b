// A side effect only: import './maintlock/guard.mjs?task=NAME'
export {};
