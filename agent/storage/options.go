// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent/beneath"
)

// options are mount(8) options, split into flags and those that the file system itself interprets.
type options struct {
	flags uintptr
	data  []string
}

// flagOptions are the words that stand for mount flags; "clear" words take one away.
var flagOptions = map[string]struct {
	flag  uintptr
	clear bool
}{
	"defaults": {0, false}, "ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
	"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
	"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true},
	"dirsync": {unix.MS_DIRSYNC, false}, "noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true},
	"nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true},
	"strictatime": {unix.MS_STRICTATIME, false}, "nostrictatime": {unix.MS_STRICTATIME, true},
	"lazytime": {unix.MS_LAZYTIME, false}, "nolazytime": {unix.MS_LAZYTIME, true},
	"bind": {unix.MS_BIND, false}, "rbind": {unix.MS_BIND | unix.MS_REC, false},
}

// Bounds on a host's options. An overlay of many layers has one long option.
const (
	maxOptions    = 256
	maxOptionsLen = 256 << 10
)

// parseOptions interprets options; each string may hold several, separated by commas.
func parseOptions(list []string) (options, error) {
	var o options
	total := 0
	for _, s := range list {
		if total += len(s); total > maxOptionsLen {
			return options{}, fmt.Errorf("mount options are longer than %d bytes", maxOptionsLen)
		}
		for word := range strings.SplitSeq(s, ",") {
			if strings.ContainsRune(word, 0) {
				return options{}, errors.New("mount option holds a zero byte")
			}
			if f, ok := flagOptions[word]; ok && f.clear {
				o.flags &^= f.flag
			} else if ok {
				o.flags |= f.flag
			} else if word != "" {
				o.data = append(o.data, word)
			}
		}
	}
	if len(o.data) > maxOptions {
		return options{}, fmt.Errorf("more than %d mount options", maxOptions)
	}
	return o, nil
}

func (o options) joined() string { return strings.Join(o.data, ",") }

// fileSystem is a file system with these options.
func (o options) fileSystem(fstype, source string) beneath.FileSystem {
	return beneath.FileSystem{Type: fstype, Source: source, Flags: o.flags, Data: o.data}
}

// take removes the option called name and returns its value. Given twice, it is an error.
func (o *options) take(name string) (value string, ok bool, err error) {
	var rest []string
	for _, w := range o.data {
		n, v, _ := strings.Cut(w, "=")
		if n != name {
			rest = append(rest, w)
			continue
		}
		if ok {
			return "", false, fmt.Errorf("option %s is given twice", name)
		}
		value, ok = v, true
	}
	o.data = rest
	return value, ok, nil
}

func (o *options) takeMode(def uint32) (uint32, error) {
	v, ok, err := o.take("mode")
	if err != nil || !ok {
		return def, err
	}
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, fmt.Errorf("mode %.20q is not an octal file mode", v)
	}
	return uint32(n), nil
}

func (o *options) takeID(name string) (int, bool, error) {
	v, ok, err := o.take(name)
	if err != nil || !ok {
		return 0, false, err
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0, false, fmt.Errorf("%s %.20q is not an id", name, v)
	}
	return int(n), true, nil
}

// parseSize reads a size in bytes with an optional unit (k, m, g, also Ki, KiB, …).
func parseSize(s string) (uint64, error) {
	digits := strings.TrimRight(s, "kKmMgGiIbB")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(s[len(digits):]), "b"), "i")
	shift, ok := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30}[unit]
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || !ok || n > 1<<62>>shift {
		return 0, fmt.Errorf("%.20q is not a size", s)
	}
	return n << shift, nil
}
