//go:build tools

// Package tools pins the container runtime of the nodes.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
)
