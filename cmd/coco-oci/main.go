// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command coco-oci is the command line of an OCI runtime, as runc has it, for engines without containerd: Podman,
// buildah, CRI-O. Behind it runs one shim process per pod, and one small process of the host stands for each process of
// a guest.
package main

import (
	"os"

	"github.com/coco-shim/coco/cmd/coco-oci/internal/standin"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/verbs"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == standin.Arg {
		os.Exit(standin.Main(os.Args[2:]))
	}
	os.Exit(verbs.Main(os.Args[1:]))
}
