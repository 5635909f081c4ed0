//go:build tools

// Package tools pins crictl, which kubeadm and kind ask for images.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
)
