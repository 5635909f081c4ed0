//go:build tools

// Package tools pins helm, which installs the chart.
// It is never compiled; it tells `go mod tidy` which packages go.sum must cover.
package tools

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
