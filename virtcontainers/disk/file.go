// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// ForVolume makes a sparse disk of a size in a directory of the host and plugs it. source is the volume's name. u
// removes the file.
func (s *Set) ForVolume(ctx context.Context, dir *os.File, source string, size uint64,
	u *undo.Stack,
) (hypervisor.BlockAddress, error) {
	if err := s.record(filepath.Join(source, state.DiskName), u); err != nil {
		return hypervisor.BlockAddress{}, err
	}
	f, err := create(dir, size)
	if err != nil {
		return hypervisor.BlockAddress{}, err
	}
	defer f.Close() // the VMM has its own descriptor
	addr, err := s.plug(ctx, hypervisor.Block{ID: volumeID(source), File: f})
	if err != nil {
		return addr, fmt.Errorf("attach the disk of volume %s to vm %s: %w", source, s.vm.ID(), err)
	}
	return addr, nil
}

// PlugVolume gives a disk of the host to the VM, for as long as it lives, and closes its file. source is the volume's
// name.
func (s *Set) PlugVolume(ctx context.Context, source string, b hypervisor.Block) (hypervisor.BlockAddress, error) {
	defer b.File.Close() // the VMM has its own descriptor
	b.ID = volumeID(source)
	addr, err := s.plug(ctx, b)
	if err != nil {
		return addr, fmt.Errorf("attach volume %s to vm %s: %w", source, s.vm.ID(), err)
	}
	return addr, nil
}

func volumeID(source string) string { return "v-" + ident.Hash16(source) }

// record writes a disk's file into the journal, and pushes its removal.
func (s *Set) record(name string, u *undo.Stack) error {
	if err := s.journal.Update(func(j *state.Pod) { j.Disks = append(slices.Clone(j.Disks), name) }); err != nil {
		return err
	}
	u.Push("remove "+name, func(context.Context) error { return s.remove(name) })
	return nil
}

// create makes the sparse file. One that is there is of a pod's earlier VM, whose key is gone.
func create(dir *os.File, size uint64) (*os.File, error) {
	if err := state.RemoveDiskIn(dir); err != nil {
		return nil, err
	}
	f, err := hostfs.Beneath(dir, state.DiskName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, false)
	if err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if err := f.Truncate(int64(size)); err != nil { //nolint:gosec // bounded
		return nil, errors.Join(fmt.Errorf("make a disk of %d MiB: %w", size>>20, err), f.Close())
	}
	return f, nil
}

// remove removes a disk and takes it out of the journal.
func (s *Set) remove(name string) error {
	if err := state.RemoveDisk(name); err != nil {
		return err
	}
	return s.journal.Update(func(j *state.Pod) {
		j.Disks = slices.DeleteFunc(slices.Clone(j.Disks), func(d string) bool { return d == name })
	})
}
