// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/image/layer"
)

// overlay is the usual snapshot: read-only layers and a writable directory.
func overlay(m Mount, before []made) (made, error) {
	p, err := fromOverlay(m.Options, func(dir string) ([]layer.Source, error) {
		if first, last, ok := reference2(dir); ok {
			return referred(before, first, last)
		}
		if !path.IsAbs(dir) {
			return nil, fmt.Errorf("lower directory %q is not an absolute path: %w", dir, errdefs.ErrInvalidArgument)
		}
		return []layer.Source{dirSource(path.Clean(dir))}, nil
	})
	if err != nil {
		return made{}, err
	}
	if n, ok, err := reference(p.Upper, before); err != nil {
		return made{}, err
	} else if ok {
		if !before[n].scratch {
			return made{}, fmt.Errorf("upper directory %q is not on a scratch device: %w", p.Upper, errdefs.ErrInvalidArgument)
		}
		p.Upper = ""
	} else if p.Upper != "" && !path.IsAbs(p.Upper) {
		return made{}, fmt.Errorf("upper directory %q is not an absolute path: %w", p.Upper, errdefs.ErrInvalidArgument)
	}
	return made{plan: p}, nil
}

// fromOverlay interprets the options of an overlay. lower turns one lower directory into layers.
func fromOverlay(options []string, lower func(string) ([]layer.Source, error)) (Plan, error) {
	var p Plan
	var dirs []string
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "lowerdir":
			ds, err := splitLower(value)
			if err != nil {
				return Plan{}, err
			}
			dirs = append(dirs, ds...)
		case "lowerdir+":
			dirs = append(dirs, value)
		case "upperdir":
			p.Upper = unescape(value)
		case "ro":
			p.ReadOnly = true
		case "userxattr":
			p.UserXattr = true
		case "workdir", "rw", "index", "volatile", "nouserxattr", "xino", "uuid", "nfs_export",
			"metacopy", "redirect_dir", "verity", "fsync", "default_permissions", "nosuid", "nodev", "noexec":
			// How the host writes to the overlay. Where a layer really depends on metacopy
			// or redirect_dir, building it fails.
		case "uidmap", "gidmap":
			return Plan{}, fmt.Errorf("option %q: layers with shifted user ids are not supported: %w", o,
				errdefs.ErrNotImplemented)
		default:
			if !ignorable(o) {
				return Plan{}, unknownOption(o)
			}
		}
	}
	if len(dirs) == 0 {
		return Plan{}, fmt.Errorf("overlay without lowerdir: %w", errdefs.ErrInvalidArgument)
	}
	for _, d := range dirs {
		sources, err := lower(d)
		if err != nil {
			return Plan{}, err
		}
		p.Lower = append(p.Lower, sources...)
	}
	for i := range p.Lower {
		p.Lower[i].UserXattr = p.UserXattr && p.Lower[i].Kind == layer.Dir
	}
	p.ReadOnly = p.ReadOnly || p.Upper == ""
	return p, nil
}

// splitLower cuts lowerdir at colons that are not escaped.
func splitLower(s string) ([]string, error) {
	var dirs []string
	var cur strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			cur.WriteByte(s[i])
		case s[i] == ':':
			if cur.Len() == 0 {
				// "::" sets off data-only layers, which nobody uses for images.
				return nil, fmt.Errorf("lowerdir %q has an empty part: %w", s, errdefs.ErrInvalidArgument)
			}
			dirs = append(dirs, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(s[i])
		}
	}
	if cur.Len() == 0 {
		return nil, fmt.Errorf("lowerdir %q has an empty part: %w", s, errdefs.ErrInvalidArgument)
	}
	return append(dirs, cur.String()), nil
}

// unescape removes overlay's backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// hostOverlayOptions splits the options as /proc/self/mountinfo shows them. There, commas and
// blanks inside of a value are octal.
func hostOverlayOptions(s string) ([]string, error) {
	var opts []string
	for o := range strings.SplitSeq(s, ",") {
		var b strings.Builder
		for i := 0; i < len(o); i++ {
			if o[i] == '\\' && i+3 < len(o) {
				if n, err := strconv.ParseUint(o[i+1:i+4], 8, 8); err == nil {
					b.WriteByte(byte(n))
					i += 3
					continue
				}
			}
			b.WriteByte(o[i])
		}
		opts = append(opts, b.String())
	}
	if len(opts) > 4*maxLayers {
		return nil, errors.New("too many options")
	}
	return opts, nil
}

// reference recognises "{{ mount N }}" at the start of a path.
func reference(path string, before []made) (n int, ok bool, err error) {
	if !strings.HasPrefix(path, "{{") {
		return 0, false, nil
	}
	inner, _, closed := strings.Cut(path[2:], "}}")
	f := strings.Fields(inner)
	if !closed || len(f) != 2 || f[0] != "mount" && f[0] != "source" && f[0] != "target" {
		return 0, false, fmt.Errorf("cannot interpret %q: %w", path, errdefs.ErrNotImplemented)
	}
	n, err = strconv.Atoi(f[1])
	if err != nil || n < 0 || n >= len(before) {
		return 0, false, fmt.Errorf("%q refers to a mount that is not there: %w", path, errdefs.ErrInvalidArgument)
	}
	return n, true, nil
}

// reference2 recognises "{{ mount N }}" and "{{ overlay FIRST LAST }}" as a lower directory.
func reference2(dir string) (first, last int, ok bool) {
	inner, ok := strings.CutPrefix(dir, "{{")
	if !ok {
		return 0, 0, false
	}
	inner, ok = strings.CutSuffix(inner, "}}")
	f := strings.Fields(inner)
	if !ok || len(f) < 2 {
		return 0, 0, false
	}
	first, err := strconv.Atoi(f[1])
	if err != nil {
		return 0, 0, false
	}
	switch {
	case f[0] == "mount" && len(f) == 2:
		return first, first, true
	case f[0] == "overlay" && len(f) == 3:
		last, err = strconv.Atoi(f[2])
		return first, last, err == nil
	}
	return 0, 0, false
}

// referred collects the layers of earlier mounts, in the order that is asked for.
func referred(before []made, first, last int) ([]layer.Source, error) {
	step := 1
	if first > last {
		step = -1
	}
	var out []layer.Source
	for i := first; ; i += step {
		if i < 0 || i >= len(before) {
			return nil, fmt.Errorf("lower directory refers to mount %d of %d: %w", i, len(before), errdefs.ErrInvalidArgument)
		}
		if before[i].scratch || before[i].plan.Upper != "" {
			return nil, fmt.Errorf("lower directory refers to mount %d, which is writable: %w", i, errdefs.ErrNotImplemented)
		}
		out = append(out, before[i].plan.Lower...)
		if i == last {
			return out, nil
		}
	}
}
