"""npm scripts behind the lease: what `maintlock guard` and `maintlock init` know of package.json, shells and npm."""
