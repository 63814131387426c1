// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netdump reads the kernel's network lists completely. It does not interpret their messages.
package netdump

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// tries bounds how often a list is read again because it changed while it was read.
const tries = 32

// Read reads a list that the kernel gives in pieces, again when it changed in between: the pieces would not belong
// together.
func Read[T any](ctx context.Context, what string, read func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
		list, err := read()
		if err == nil {
			return list, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == tries {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
	}
}
