// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package state keeps the state of containers between invocations of coco-oci: a directory for each below
// the root directory, which is also the bundle of the container's shim.
//
//	ROOT/s/…              sockets of the shims
//	ROOT/c/ID/state.json  the container, once it is created
//	ROOT/c/ID/config.json its specification, with what coco-oci has changed in it
//	ROOT/c/ID/…           files of the shim (package shim/bundle), FIFOs of the processes
//
// A directory is made by Claim, by one process only, and removed by Remove.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/shim/bundle"
)

// maxState bounds state.json: the annotations of a specification are in it.
const maxState = 16 << 20

// Container is the state of a container that its shim does not have.
type Container struct {
	ID          string            `json:"id"`
	Pod         string            `json:"pod"` // the container whose shim serves it, itself as a rule
	Address     string            `json:"address"`
	Bundle      string            `json:"bundle"` // the engine's
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	StandIn     bundle.Process    `json:"standIn"`
	UID         uint32            `json:"uid"` // of the caller
}

// Root is a root directory.
type Root string

// Sockets is the directory of the shims' sockets.
func (r Root) Sockets() string { return filepath.Join(string(r), "s") }

// Dir is the directory of a container.
func (r Root) Dir(id string) string { return filepath.Join(string(r), "c", id) }

// Claim makes the directory of a new container. It returns errdefs.ErrAlreadyExists if there is one.
func (r Root) Claim(id string) (string, error) {
	if err := bundle.CheckName("container id", id); err != nil {
		return "", err
	}
	dir := r.Dir(id)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", fmt.Errorf("make the root directory: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("container with id exists: %s: %w", id, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return "", fmt.Errorf("make the directory of container %s: %w", id, err)
	}
	return dir, nil
}

// Save records a container, for the first time or anew.
func (r Root) Save(c Container) error {
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("record container %s: %w", c.ID, err)
	}
	tmp := filepath.Join(r.Dir(c.ID), ".state.json")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("record container %s: %w", c.ID, err)
	}
	if err := os.Rename(tmp, filepath.Join(r.Dir(c.ID), "state.json")); err != nil {
		return fmt.Errorf("record container %s: %w", c.ID, err)
	}
	return nil
}

// Load reads a container. It returns errdefs.ErrNotFound if there is none, or none that is complete.
func (r Root) Load(id string) (Container, error) {
	if err := bundle.CheckName("container id", id); err != nil {
		return Container{}, err
	}
	path := filepath.Join(r.Dir(id), "state.json")
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Container{}, fmt.Errorf("container %s does not exist: %w", id, errdefs.ErrNotFound)
	}
	if err == nil && info.Size() > maxState {
		err = fmt.Errorf("it has %d bytes, at most %d are read", info.Size(), maxState)
	}
	if err != nil {
		return Container{}, fmt.Errorf("read the state of container %s: %w", id, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Container{}, fmt.Errorf("read the state of container %s: %w", id, err)
	}
	var c Container
	if err := json.Unmarshal(data, &c); err != nil {
		return Container{}, fmt.Errorf("read the state of container %s: %w", id, err)
	}
	return c, nil
}

// List returns the ids of all containers, in order.
func (r Root) List() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(string(r), "c"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if bundle.CheckName("container id", e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Remove removes the directory of a container. One that is gone is fine.
func (r Root) Remove(id string) error {
	if err := os.RemoveAll(r.Dir(id)); err != nil {
		return fmt.Errorf("remove the directory of container %s: %w", id, err)
	}
	return nil
}

// Lock waits until no other invocation changes the container; unlock ends the turn. Without the container it returns
// errdefs.ErrNotFound.
func (r Root) Lock(id string) (unlock func(), err error) {
	for {
		fd, err := unix.Open(r.Dir(id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("container %s does not exist: %w", id, errdefs.ErrNotFound)
		}
		if err != nil {
			return nil, fmt.Errorf("open the directory of container %s: %w", id, err)
		}
		same, err := r.lock(id, fd)
		if same {
			return func() { _ = unix.Close(fd) }, nil // closing unlocks
		}
		_ = unix.Close(fd) // it is not locked, or is the directory of a removed container
		if err != nil {
			return nil, fmt.Errorf("lock container %s: %w", id, err)
		}
	}
}

// lock locks an open directory, and says whether it is the container's still: the invocation that had the lock before
// may have removed it.
func (r Root) lock(id string, fd int) (same bool, err error) {
	for {
		if err = unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	var locked, there unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &locked)
	}
	if err != nil {
		return false, err
	}
	if err = unix.Stat(r.Dir(id), &there); errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && locked.Dev == there.Dev && locked.Ino == there.Ino, err
}
