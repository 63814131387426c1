// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package containerd has the messages that the shim and containerd exchange, with containerd's names and field numbers.
//
// They are declared here, and not imported from github.com/containerd/containerd/api, because of what that module
// links: the types of images with their regular expressions, which every shim would compile at its start, and
// protobuf's own descriptors. Without them the shim is 0.3 MB smaller. The test compares every field with containerd's.
package containerd
