//go:build tools

// Package tools pins runc, which starts the containers of the nodes.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "github.com/opencontainers/runc"
)
