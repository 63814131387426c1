// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/bundle"
	"github.com/coco-shim/coco/agent/guard"
	"github.com/coco-shim/coco/internal/undo"
)

// stage replaces the sources of bind mounts by mounts of them in the bundle. The OCI runtime opens sources
// by name, in its own mount namespace, where the agent's descriptors cannot be used; in the bundle, no
// container and no request can exchange the file behind a name. The returned stack unmounts them. It can
// run as soon as the runtime has made its own mounts.
func (s *service) stage(c *container, mounts []specs.Mount) (staged *undo.Stack, err error) {
	staged = &undo.Stack{}
	defer staged.RunOnError(&err)
	dir := filepath.Join(c.bundle, bundle.Sources)
	for i, m := range mounts {
		if !guard.IsBind(m) || guard.IsDevice(m) {
			continue
		}
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			staged.Push("remove "+dir, func(context.Context) error { return os.Remove(dir) })
		} else if !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
		src, err := s.dir().Open(m.Source)
		if err != nil {
			return nil, fmt.Errorf("mount on %s: source: %w", m.Destination, err)
		}
		c.noteTermination(m, src)
		at := filepath.Join(dir, strconv.Itoa(i))
		err = bind(staged, src, at)
		if !c.keeps(src) {
			_ = src.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
		mounts[i].Source = at
	}
	return staged, nil
}

// bind mounts the file of src at a new name in a directory of the agent's own.
func bind(staged *undo.Stack, src *os.File, at string) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return err
	}
	staged.Push("remove "+at, func(context.Context) error { return os.Remove(at) })
	mount, err := bindOn(src, at)
	if err != nil {
		return err
	}
	staged.Push("unmount "+at, func(context.Context) error { return beneath.Detach(mount) })
	return nil
}

// bindOn mounts the file of src on an existing name in a directory of the agent's own.
func bindOn(src *os.File, at string) (*os.File, error) {
	on, err := os.OpenFile(at, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer on.Close()
	mount, err := beneath.Clone(src, 0)
	if err != nil {
		return nil, err
	}
	if err := beneath.Attach(mount, on); err != nil {
		return nil, errors.Join(err, mount.Close())
	}
	return mount, nil
}

// noteTermination keeps src open if it is the file for the container's termination message.
func (c *container) noteTermination(m specs.Mount, src *os.File) {
	dest := c.messagePath
	if dest == "" {
		dest = "/dev/termination-log"
	}
	if m.Destination != dest || c.termination != nil {
		return
	}
	c.termination = src
	c.undo.Push("close termination log", func(context.Context) error { return src.Close() })
}

func (c *container) keeps(f *os.File) bool { return c.termination == f }

// dir is the directory of all files that requests name.
func (s *service) dir() beneath.Dir { return beneath.Dir(s.RunDir) }

// mountRoot shows the directory that a specification names as the root file system in the bundle.
func (s *service) mountRoot(c *container, source, rootfs string) error {
	if !filepath.IsAbs(source) {
		source = filepath.Join(c.bundle, source)
	}
	if source = filepath.Clean(source); source == rootfs {
		return nil
	}
	err := guard.Place(source, c.bundle)
	if err != nil {
		return err
	}
	src, err := s.dir().Open(source)
	if err != nil {
		return err
	}
	defer src.Close()
	if st, err := src.Stat(); err != nil || !st.IsDir() {
		return errors.Join(err, fmt.Errorf("%s is not a directory: %w", source, errdefs.ErrInvalidArgument))
	}
	mount, err := bindOn(src, rootfs)
	if err != nil {
		return err
	}
	c.undo.Push("unmount root file system", func(context.Context) error { return beneath.Detach(mount) })
	return nil
}
