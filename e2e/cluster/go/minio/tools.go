//go:build tools

// Package tools pins MinIO, an S3 server.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "github.com/minio/minio"
)
