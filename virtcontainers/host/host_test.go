// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
)

func TestTypeChoosesTheDriver(t *testing.T) {
	for _, typ := range []string{"qemu", "clh"} {
		c := configs.Default()
		c.Hypervisor.Type = typ
		h, err := New(c, "", slog.New(slog.DiscardHandler))
		if err != nil || h.Driver.Name() != typ {
			t.Errorf("New() for type %s = %v, %v", typ, h.Driver, err)
		}
	}
	c := configs.Default()
	c.Hypervisor.Type = "none"
	if _, err := New(c, "", slog.New(slog.DiscardHandler)); !errdefs.IsNotImplemented(err) {
		t.Errorf("New() for an unknown type = %v", err)
	}
}
