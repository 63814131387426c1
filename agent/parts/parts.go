// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package parts opens the parts of the guest image: programs that only some pods need, each on a disk of its own.
//
// The initramfs lists them with their root hashes. The host attaches a disk and gives it a serial number, by which Open
// finds it; nothing else of the host is believed. Open makes a dm-verity device over the disk with the hash of the
// list, so each block is verified when it is read, and mounts the EROFS image on it read-only. A part stays mounted
// until the guest ends.
package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/image/erofs/super"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/image/verity/dm"
	"github.com/coco-shim/coco/image/verity/partlist"
)

// Parts are those of this guest's image. Their fields must not change after the first Open.
type Parts struct {
	List string // file with the list, contract.PartsFile
	Dir  string // directory in which parts are mounted
	Disk disk.Finder

	verify func(name string, p verity.Params, number string) (device string, close func() error, err error)

	mu   sync.Mutex        // held while a part is opened
	open map[string]string // guarded by mu; mount points by names
}

// New returns the parts of the running guest.
func New(load func(module string, params ...string) error) *Parts {
	return &Parts{
		List: contract.PartsFile, Dir: "/run/coco-parts", Disk: disk.Finder{Sys: "/sys", Load: load}, verify: openDM,
	}
}

func openDM(name string, p verity.Params, number string) (string, func() error, error) {
	d, err := dm.Open(name, p, number)
	return d.Path, d.Close, err
}

// Open returns the directory in which a part is mounted. The kernel modules of SectionRootfs must be loaded. After an
// error it may be called again.
func (p *Parts) Open(ctx context.Context, name string) (dir string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dir := p.open[name]; dir != "" {
		return dir, nil
	}
	dir, err = p.mount(ctx, name)
	if err != nil {
		return "", fmt.Errorf("open %s of the guest image: %w", name, err)
	}
	if p.open == nil {
		p.open = map[string]string{}
	}
	p.open[name] = dir
	return dir, nil
}

func (p *Parts) mount(ctx context.Context, name string) (_ string, err error) {
	params, err := p.find(name)
	if err != nil {
		return "", err
	}
	d, err := p.Disk.BySerial(ctx, name)
	if errdefs.IsNotFound(err) {
		err = fmt.Errorf("the host has not attached it, which it does for pods whose initdata asks for it: %w", err)
	}
	if err != nil {
		return "", err
	}
	if d.Size < params.Size() {
		return "", fmt.Errorf("its disk has %d bytes, data and hash tree need %d: %w", d.Size, params.Size(),
			errdefs.ErrInvalidArgument)
	}
	device, closeDevice, err := p.verify(name, params, d.Number)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeDevice())
		}
	}()
	if err := check(device, int64(params.DataBlocks*verity.BlockSize)); err != nil { //nolint:gosec // Parse bounds it
		return "", err
	}
	dir := filepath.Join(p.Dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(device, dir, "erofs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return "", fmt.Errorf("mount %s: %w", device, err)
	}
	return dir, nil
}

// find looks a part up in the list.
func (p *Parts) find(name string) (verity.Params, error) {
	text, err := os.ReadFile(p.List)
	if err != nil {
		return verity.Params{}, err
	}
	lines, err := partlist.Parse(text)
	if err != nil {
		return verity.Params{}, fmt.Errorf("%s: %w", p.List, err)
	}
	i := slices.IndexFunc(lines, func(l partlist.Line) bool { return l.Name == name })
	if i < 0 {
		return verity.Params{}, fmt.Errorf("the image was made without it: %w", errdefs.ErrNotFound)
	}
	return lines[i].Params(), nil
}

// check refuses images that need more of the kernel's EROFS than plain ones do.
func check(device string, size int64) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = super.Check(f, size)
	return err
}
