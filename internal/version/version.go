// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package version holds the version that the build stamped into the binaries.
package version

// Unstamped is the version of binaries that were built without make, and of those of a tree without git.
const Unstamped = "dev"

// Version is set by the Makefile through -ldflags.
var Version = Unstamped
