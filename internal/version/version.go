// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package version holds the version that the build stamped into the binaries.
package version

// Version is set by the Makefile through -ldflags; "dev" in a plain go build.
var Version = "dev"
