// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// PartsFile lists the parts of the image. A part is a file beside the initramfs with a program that only some pods
// need. The image's build writes the list into the initramfs, so whatever measures the initramfs measures the parts.
// Package image/verity/partlist describes its format.
const PartsFile = "/etc/coco/parts"

// Parts of an image. A part's name is the serial number of the disk on which the shim attaches it to the VM, and the
// name of its file in the directory of the image, with PartSuffix.
const (
	// PartTrust has the program coco-trust, which fetches secrets from a key broker.
	PartTrust = PartPrefix + "trust"
	// PartRego has the program coco-rego, which evaluates a policy of Kata's agent.
	PartRego = PartPrefix + "rego"
)

// PartPrefix begins the name of each part, PartSuffix ends the name of its file.
const (
	PartPrefix = "part-"
	PartSuffix = ".img"
)
