// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/ext4"
	"github.com/coco-shim/coco/image/verity/dm"
	"github.com/containerd/errdefs"
)

// freshModules are the kernel modules that such a disk needs. Any of them may be built in.
var freshModules = []string{"dm_crypt", "xts", "ext4"}

// isFresh reports whether a storage is an empty disk of the host's, which the guest encrypts with a key of its own. The
// key ends with the guest.
func isFresh(options []string) (bool, error) {
	key := slices.Contains(options, contract.OptionEphemeralKey)
	create := slices.Contains(options, contract.OptionCreateFS)
	if key != create {
		return false, invalid(fmt.Errorf("%s and %s come together or not at all", contract.OptionEphemeralKey,
			contract.OptionCreateFS))
	}
	return key, nil
}

// mountFresh encrypts a disk with a new key, makes a file system in it and mounts that.
func (m *Manager) mountFresh(ctx context.Context, point string, mt *mounted, opts options) error {
	mode, err := opts.takeMode(0o777)
	if err != nil {
		return invalid(err)
	}
	group, _, err := opts.takeID("gid")
	if err != nil {
		return invalid(err)
	}
	if mt.storage.GetFstype() != "ext4" || len(opts.data) > 0 {
		return invalid(fmt.Errorf("file system %.40q with options %.100q cannot be made; ext4 with mode and gid can",
			mt.storage.GetFstype(), opts.joined()))
	}
	if err := m.loadFresh(); err != nil {
		return err
	}
	dev, err := m.blockDevice(ctx, mt)
	if err != nil {
		return err
	}
	fs := ext4.Options{Bytes: dev.Size, Mode: mode, Group: uint32(group), Time: uint32(time.Now().Unix())} //nolint:gosec // not negative
	var key [dm.KeySize]byte
	defer clear(key[:])
	for _, b := range [][]byte{key[:], fs.ID[:], fs.Seed[:]} {
		_, _ = rand.Read(b) // does not fail
	}
	cd, err := dm.OpenCrypt("volume-"+hex.EncodeToString(fs.ID[:]), key, dev.Number, dev.Size/512)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	mt.undo.Push("close "+cd.Path, func(context.Context) error { return cd.Close() })
	if err := ext4.FormatDevice(cd.Path, fs); err != nil {
		return err
	}
	return m.mountAt(point, mt, beneath.FileSystem{
		Type: "ext4", Source: cd.Path, Flags: opts.flags, Data: strings.Split(ext4.MountOptions, ","),
	})
}

// loadFresh loads the modules, once for all.
func (m *Manager) loadFresh() error {
	if m.Load == nil {
		return nil
	}
	_ = m.Load(fastAES) // a processor without it does the same, slower
	for _, name := range freshModules {
		if err := m.Load(name); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}
