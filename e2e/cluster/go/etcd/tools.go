//go:build tools

// Package tools pins etcd, the store of the API server.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "go.etcd.io/etcd/server/v3"
)
