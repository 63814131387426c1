// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// rlimitNames are the resources that runtime.rlimits may name, as ulimit's users and Docker call them.
var rlimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
	"rttime", "sigpending", "stack",
}

// Rlimit is a limit of processes.
type Rlimit struct {
	Type       string // as OCI has it, "RLIMIT_NOFILE"
	Soft, Hard uint64
}

// ParseRlimit reads an entry of runtime.rlimits: "nofile=1024:1048576", "core=unlimited".
func ParseRlimit(s string) (Rlimit, error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok || !slices.Contains(rlimitNames, name) {
		return Rlimit{}, fmt.Errorf("%.40q is not NAME=LIMIT or NAME=SOFT:HARD with a name of %s", s,
			strings.Join(rlimitNames, ", "))
	}
	soft, hard, both := strings.Cut(value, ":")
	if !both {
		hard = soft
	}
	out := Rlimit{Type: "RLIMIT_" + strings.ToUpper(name)}
	for _, v := range []struct {
		text string
		to   *uint64
	}{{soft, &out.Soft}, {hard, &out.Hard}} {
		if v.text == "unlimited" {
			*v.to = ^uint64(0)
			continue
		}
		n, err := strconv.ParseUint(v.text, 10, 63)
		if err != nil {
			return Rlimit{}, fmt.Errorf("%.40q: %.40q is neither a number nor unlimited", s, v.text)
		}
		*v.to = n
	}
	if out.Soft > out.Hard {
		return Rlimit{}, fmt.Errorf("%.40q: the soft limit is above the hard one", s)
	}
	return out, nil
}

// rlimits checks the list, in which each resource is named once.
func rlimits() rule {
	return rule{"a list of limits, as in [\"nofile=1024:1048576\", \"core=unlimited\"]", func(v any) string {
		seen := map[string]bool{}
		for _, s := range v.([]string) {
			l, err := ParseRlimit(s)
			switch {
			case err != nil:
				return err.Error()
			case seen[l.Type]:
				return fmt.Sprintf("%q names a resource for the second time", s)
			}
			seen[l.Type] = true
		}
		return ""
	}}
}
