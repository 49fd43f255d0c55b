"""The scheduler: observe, decide, act. `loop` is its table of contents; what decides (`cadence`, `backpressure`) is pure."""
