//go:build tools

// Package tools pins the provisioner of the default storage class.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "github.com/rancher/local-path-provisioner"
)
