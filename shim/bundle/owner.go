// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

// OwnerKey is the ttrpc metadata that a Wait of the task service carries when its caller stands for the process on the
// host: when the connection ends before the process, the shim kills the process. coco-oci sets it, for the process
// whose pid the engine has.
const OwnerKey = "coco-owner"
