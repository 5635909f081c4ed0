//go:build tools

// Package tools pins versitygw, an S3 server over a directory.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "github.com/versity/versitygw/cmd/versitygw"
)
