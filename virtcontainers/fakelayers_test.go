// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"fmt"
	"os"

	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/virtcontainers/layers"
)

type fakeLayers world

// Tidy notes what is held of the pod then: it must be nothing.
func (f *fakeLayers) Tidy(context.Context) error {
	left := (*world)(f).left()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tidied = append(f.tidied, fmt.Sprint(left))
	return errInjected // nobody minds
}

func (f *fakeLayers) Open(ctx context.Context, _ layers.Request) ([]*layer.Layer, error) {
	w := (*world)(f)
	w.mu.Lock()
	wait := w.slow["layers"]
	w.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := w.op("open layers"); err != nil {
		return nil, err
	}
	var out []*layer.Layer
	for i := range w.layers {
		file, err := os.CreateTemp(w.dir, "layer")
		if err != nil {
			return nil, err
		}
		if err := os.Remove(file.Name()); err != nil {
			return nil, err
		}
		l := &layer.Layer{File: file, Params: verity.Params{Salt: verity.Salt, DataBlocks: 1, HashOffset: 4096}}
		l.RootHash[0] = byte(i + 1)
		out = append(out, l)
	}
	return out, nil
}
