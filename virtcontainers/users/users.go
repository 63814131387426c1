// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package users gives each pod a user id of its own, from a range.
//
// An id in use is a symbolic link in a directory that all pods share. Its name is the id, and its
// target names the pod. Links are made atomically and need no lock, and the link of a pod that
// crashed can be distinguished from another pod's.
package users

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Range is Count ids from First on.
type Range struct{ First, Count uint32 }

// Take takes an id for owner, which is a path. Before an id is tried, record is called with it, so that
// it can be written down. The caller gives the last one that was recorded back with Free, also after an
// error.
func Take(dir string, r Range, owner string, record func(id uint32) error) (uint32, error) {
	if r.First == 0 || r.Count == 0 || r.First+(r.Count-1) < r.First {
		return 0, fmt.Errorf("the range of user ids from %d, %d of them, is none that can be used: %w", r.First, r.Count,
			errdefs.ErrInvalidArgument)
	}
	h := fnv.New32a() // pods begin in different places, so that they seldom meet
	_, _ = h.Write([]byte(owner))
	for i := range r.Count {
		id := r.First + uint32((uint64(h.Sum32())+uint64(i))%uint64(r.Count)) //nolint:gosec // below Count
		if err := record(id); err != nil {
			return 0, err
		}
		err := os.Symlink(owner, link(dir, id))
		if err == nil {
			return id, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return 0, fmt.Errorf("take a user id: %w", err)
		}
	}
	return 0, fmt.Errorf("all %d user ids from %d on are taken by pods, see %s: %w", r.Count, r.First, link(dir, r.First),
		errdefs.ErrResourceExhausted)
}

// Free gives an id back, if it is the owner's. It is idempotent.
func Free(dir string, id uint32, owner string) error {
	target, err := os.Readlink(link(dir, id))
	if err == nil && target == owner {
		err = os.Remove(link(dir, id))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give user id %d back: %w", id, err)
	}
	return nil
}

// Give makes an id that one owner has another one's. The id is taken at every moment.
func Give(dir string, id uint32, from, to string) error {
	target, err := os.Readlink(link(dir, id))
	if err == nil && target != from {
		err = fmt.Errorf("it is that of %s: %w", target, errdefs.ErrFailedPrecondition)
	}
	aside := filepath.Join(dir, fmt.Sprint(".user-", id))
	if err == nil {
		_ = os.Remove(aside) // of a process that was killed
		err = os.Symlink(to, aside)
	}
	if err == nil {
		err = os.Rename(aside, link(dir, id))
	}
	if err != nil {
		return fmt.Errorf("give user id %d to %s: %w", id, to, err)
	}
	return nil
}

// FreeAll gives back every id that an owner has, for one that is gone and whose ids nobody knows.
func FreeAll(dir, owner string) error {
	links, err := filepath.Glob(filepath.Join(dir, "user-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if target, err := os.Readlink(l); err != nil || target != owner {
			continue
		}
		if err := os.Remove(l); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("give a user id back: %w", err))
		}
	}
	return errors.Join(errs...)
}

func link(dir string, id uint32) string { return filepath.Join(dir, fmt.Sprint("user-", id)) }
