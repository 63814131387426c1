// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package predict

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
)

// user computes ids: kubelet takes the pod's, or the user half of the image's; containerd looks for the rest in the
// image's files.
func (in Input) user() (specs.User, error) {
	uid, gid := in.asked()
	name := ""
	if uid == nil {
		name, _, _ = strings.Cut(in.Image.User, ":")
		switch n, err := strconv.ParseInt(name, 10, 64); {
		case name == "":
			uid = new(int64)
		case err == nil:
			uid = &n
		case errors.Is(err, strconv.ErrRange):
			return specs.User{}, fmt.Errorf("the image's user %q is out of range", name)
		}
	}
	for _, id := range []*int64{uid, gid} {
		if id != nil && (*id < 0 || *id > math.MaxInt32) {
			return specs.User{}, fmt.Errorf("user or group %d is out of range", *id)
		}
	}
	found, ok, err := in.passwd(uid, name)
	if err != nil {
		return specs.User{}, err
	}
	out := specs.User{}
	switch {
	case ok:
		out.UID, out.GID = uint32(found.Uid), uint32(found.Gid) //nolint:gosec // ids of a file that containerd reads alike
	case uid == nil:
		return specs.User{}, fmt.Errorf("the image's user %q is not in its /etc/passwd", name)
	default:
		out.UID = uint32(*uid) //nolint:gosec // bounded above
	}
	groups := []uint32{}
	if gid != nil {
		if name == "" {
			out.UID = uint32(*uid) //nolint:gosec // bounded above
		}
		out.GID = uint32(*gid) //nolint:gosec // bounded above
	}
	if !in.strictGroups() && (ok || name != "") {
		more, err := in.memberOf(found.Name)
		if err != nil {
			return specs.User{}, err
		}
		groups = more
	}
	groups = append(append(groups, out.GID), in.supplemental()...)
	slices.Sort(groups)
	out.AdditionalGids = slices.Compact(groups)
	return out, in.nonRoot(out.UID)
}

// asked are the ids of the pod's specification; the container's own come first.
func (in Input) asked() (uid, gid *int64) {
	if p := in.Pod.SecurityContext; p != nil {
		uid, gid = p.RunAsUser, p.RunAsGroup
	}
	if c := in.Container.SecurityContext; c != nil {
		if c.RunAsUser != nil {
			uid = c.RunAsUser
		}
		if c.RunAsGroup != nil {
			gid = c.RunAsGroup
		}
	}
	return uid, gid
}

func (in Input) passwd(uid *int64, name string) (user.User, bool, error) {
	list, err := user.ParsePasswdFilter(bytes.NewReader(in.Image.Passwd), func(u user.User) bool {
		if name != "" && uid == nil {
			return u.Name == name
		}
		return uid != nil && int64(u.Uid) == *uid
	})
	if err != nil {
		return user.User{}, false, fmt.Errorf("the image's /etc/passwd: %w", err)
	}
	if len(list) == 0 {
		return user.User{}, false, nil
	}
	return list[0], true, nil
}

// memberOf are the groups of the image that list a user.
func (in Input) memberOf(name string) (out []uint32, err error) {
	list, err := user.ParseGroupFilter(bytes.NewReader(in.Image.Group), func(g user.Group) bool {
		return g.Name != name && slices.Contains(g.List, name)
	})
	if err != nil {
		return nil, fmt.Errorf("the image's /etc/group: %w", err)
	}
	for _, g := range list {
		out = append(out, uint32(g.Gid)) //nolint:gosec // ids of a file that containerd reads alike
	}
	return out, nil
}

func (in Input) strictGroups() bool {
	p := in.Pod.SecurityContext
	return p != nil && p.SupplementalGroupsPolicy != nil &&
		*p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
}

func (in Input) supplemental() (out []uint32) {
	p := in.Pod.SecurityContext
	if p == nil {
		return nil
	}
	if p.FSGroup != nil {
		out = append(out, uint32(*p.FSGroup)) //nolint:gosec // the API server bounds it
	}
	for _, g := range p.SupplementalGroups {
		out = append(out, uint32(g)) //nolint:gosec // the API server bounds it
	}
	return out
}

// nonRoot refuses what kubelet would not start.
func (in Input) nonRoot(uid uint32) error {
	must := false
	if p := in.Pod.SecurityContext; p != nil && p.RunAsNonRoot != nil {
		must = *p.RunAsNonRoot
	}
	if c := in.Container.SecurityContext; c != nil && c.RunAsNonRoot != nil {
		must = *c.RunAsNonRoot
	}
	if must && uid == 0 {
		return errors.New("securityContext.runAsNonRoot is set and the container runs as root: kubelet would not start it")
	}
	return nil
}

var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCaps are the capabilities of Linux 5.9 and later, all of which containerd has.
var allCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capabilities are containerd's default with those that the pod adds and drops.
func capabilities(sc *corev1.SecurityContext) *specs.LinuxCapabilities {
	caps := slices.Clone(defaultCaps)
	if sc != nil && sc.Capabilities != nil {
		add, drop := sc.Capabilities.Add, sc.Capabilities.Drop
		if slices.Contains(add, "ALL") {
			caps = slices.Clone(allCaps)
		}
		if slices.Contains(drop, "ALL") {
			caps = nil
		}
		for _, c := range add {
			if name := capability(c); name != "" && !slices.Contains(caps, name) {
				caps = append(caps, name)
			}
		}
		for _, c := range drop {
			caps = slices.DeleteFunc(caps, func(have string) bool { return have == capability(c) })
		}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: slices.Clone(caps), Permitted: slices.Clone(caps)}
}

func capability(c corev1.Capability) string {
	name := strings.ToUpper(string(c))
	if name == "ALL" {
		return ""
	}
	return "CAP_" + name
}
