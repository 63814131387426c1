// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package layer has the types in which the package that pulls layers hands them to the one that mounts them.
package layer

import (
	"context"
	"fmt"
	"os"

	"github.com/coco-shim/coco/image/verity"
)

// Pulled is a layer that the guest has fetched itself: an EROFS image with its hash tree. The root hash is the
// policy's, or for a signed image coco-trust's.
type Pulled struct {
	File *os.File
	verity.Params
}

// Images pulls the images that the pod's policy has the guest pull; package agent/pull implements it.
type Images interface {
	// Fetch waits until an image has been pulled.
	Fetch(ctx context.Context, source string) error
	// Take returns the layers of an image that was fetched, the topmost first. They are the caller's.
	Take(source string) ([]Pulled, error)
}

// CorruptError is the error for a layer whose data does not match its root hash.
type CorruptError struct {
	RootHash, MountPoint string
	Pulled               bool // the guest has fetched it itself: the node has no copy of it
}

func (e *CorruptError) Error() string {
	advice := "remove the layer from the node's cache so that it is built again"
	if e.Pulled {
		advice = "the guest has pulled the layer itself and compared it then, so that it was changed in the guest's memory " +
			"or on its disk: create the pod again, so that it is pulled again"
	}
	return fmt.Sprintf("layer %s at %s is corrupted: a block that was read does not match the root hash; %s", e.RootHash,
		e.MountPoint, advice)
}
