//go:build tools

// Package tools pins the CNI plugins that give pods their addresses.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "github.com/containernetworking/plugins/plugins/ipam/host-local"
	_ "github.com/containernetworking/plugins/plugins/main/loopback"
	_ "github.com/containernetworking/plugins/plugins/main/ptp"
	_ "github.com/containernetworking/plugins/plugins/meta/portmap"
)
