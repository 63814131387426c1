// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package netdump

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestAListThatChangesIsReadAgain(t *testing.T) {
	tries := 0
	list, err := Read(t.Context(), "things", func() ([]int, error) {
		if tries++; tries < 4 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(list) != 2 || tries != 4 {
		t.Errorf("Read = %v, %v after %d tries", list, err, tries)
	}
	boom := errors.New("boom")
	if _, err := Read(t.Context(), "things", func() ([]int, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("Read = %v, want %v", err, boom)
	}
	if _, err := Read(t.Context(), "things", func() ([]int, error) {
		return nil, netlink.ErrDumpInterrupted
	}); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("Read = %v, want an end", err)
	}
}
