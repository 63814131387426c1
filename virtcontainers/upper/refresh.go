// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upper

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// refresh has the kernel look anew into an overlay that the engine has mounted: it remembers which names an overlay
// has, and forgets them when the file system is mounted again in place. Without that, docker cp from a paused
// container shows old files, and fails when it writes.
func refresh(merged string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(filepath.Clean(merged)))
	if err != nil {
		return fmt.Errorf("mounts at %s: %w", merged, err)
	}
	if len(mounts) == 0 || mounts[len(mounts)-1].FSType != "overlay" {
		return nil
	}
	err = unix.Mount("", merged, "", unix.MS_REMOUNT|flags(mounts[len(mounts)-1].Options), "")
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it has been unmounted meanwhile
		return fmt.Errorf("%s shows old files: remount: %w", merged, err)
	}
	return nil
}

// flags are the options of a mount point as the kernel shows them, for it to keep them.
func flags(options string) (out uintptr) {
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "ro":
			out |= unix.MS_RDONLY
		case "nosuid":
			out |= unix.MS_NOSUID
		case "nodev":
			out |= unix.MS_NODEV
		case "noexec":
			out |= unix.MS_NOEXEC
		case "noatime":
			out |= unix.MS_NOATIME
		case "nodiratime":
			out |= unix.MS_NODIRATIME
		case "nosymfollow":
			out |= unix.MS_NOSYMFOLLOW
		case "relatime":
			out |= unix.MS_RELATIME
		}
	}
	return out
}
