// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package shimoptions is the protobuf message by which a client passes runtime options to coco's
// shim. It is generated from proto/coco/shim/v1/options.proto.
package shimoptions
