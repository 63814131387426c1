// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"strings"
	"testing"
)

// The advice for a layer depends on its origin: the node has none of those that the guest pulls.
func TestAdviceForCorruptLayers(t *testing.T) {
	e := CorruptError{RootHash: "abc", MountPoint: "/x"}
	if !strings.Contains(e.Error(), "layer abc at /x is corrupted") || !strings.Contains(e.Error(), "the node's cache") {
		t.Error(e.Error())
	}
	if e.Pulled = true; strings.Contains(e.Error(), "cache") || !strings.Contains(e.Error(), "create the pod again") {
		t.Error(e.Error())
	}
}
