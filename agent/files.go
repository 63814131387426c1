// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// resolveInside follows the links in p and returns where it leads, which must be below base.
func resolveInside(p, base string) (string, error) {
	real, err := filepath.EvalSymlinks(p)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s does not exist in the guest: %w", p, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return "", err
	}
	if b, err := filepath.EvalSymlinks(base); err == nil {
		base = b
	}
	if !strings.HasPrefix(real, base+"/") {
		return "", fmt.Errorf("%s leads to %s, which is not below %s: %w", p, real, base, errdefs.ErrInvalidArgument)
	}
	return real, nil
}

// confine replaces the sources of bind mounts by where they lead, so that a link among the copied
// files cannot bring a part of the guest into a container.
func confine(mounts []specs.Mount) error {
	for i, m := range mounts {
		if !isBind(m) {
			continue
		}
		real, err := resolveInside(m.Source, runDir)
		if err != nil {
			return fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
		mounts[i].Source = real
	}
	return nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func bindMount(src, dst string) error {
	if err := unix.Mount(src, dst, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", src, dst, err)
	}
	return nil
}

func unmount(dst string) error {
	err := unix.Unmount(dst, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted (any more)
		return fmt.Errorf("unmount %s: %w", dst, err)
	}
	return nil
}

// removeBundle removes a bundle whose root file system is unmounted. It never descends into it: the
// directory is empty then.
func removeBundle(dir string) error {
	if err := os.Remove(filepath.Join(dir, "rootfs")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove bundle: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	return nil
}

// terminationLog finds the file in which a Kubernetes container leaves its last words.
func terminationLog(s *specs.Spec) string {
	dest := s.Annotations["io.kubernetes.container.terminationMessagePath"]
	for _, m := range s.Mounts {
		if isBind(m) && (m.Destination == dest || dest == "" && m.Destination == "/dev/termination-log") {
			return m.Source
		}
	}
	return ""
}
