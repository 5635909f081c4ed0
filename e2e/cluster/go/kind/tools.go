//go:build tools

// Package tools pins kind, which creates the cluster.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "sigs.k8s.io/kind"
)
