// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// Traces is the set of everything on the host that a pod can leave behind, one line each.
type Traces map[string]bool

// TakeTraces looks at processes, mounts, links, network namespaces, cgroups, sockets and files.
func TakeTraces() (Traces, error) {
	t := Traces{}
	t.processes()
	if err := t.mounts(); err != nil {
		return nil, err
	}
	t.glob("link", "/sys/class/net/*")
	t.glob("netns", "/run/netns/*")
	t.glob("netns", "/run/coco/netns/*")
	t.tree("file", "/run/coco")
	t.glob("socket", "/run/containerd/s/*")
	t.glob("layer temp", "/var/lib/coco/layers/tmp/*")
	for _, root := range []string{
		"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids",
		"/sys/fs/cgroup/unified",
	} {
		t.tree("cgroup", root)
	}
	return t, nil
}

// processes notes every living process that is ours by its program name. Zombies wait for a PID 1
// that reaps late here; they hold nothing.
func (t Traces) processes() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		stat, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue
		}
		rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
		if f := strings.Fields(rest); len(f) == 0 || f[0] == "Z" || f[0] == "X" {
			continue
		}
		cmd, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue
		}
		if argv := strings.Split(string(cmd), "\x00"); isOurs(argv) {
			t[fmt.Sprintf("process %s (pid %s)", filepath.Base(argv[0]), filepath.Base(d))] = true
		}
	}
}

func (t Traces) mounts() error {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return fmt.Errorf("read the mount table: %w", err)
	}
	for _, m := range infos {
		t["mount "+m.Mountpoint] = true
	}
	return nil
}

func (t Traces) glob(kind, pattern string) {
	names, _ := filepath.Glob(pattern)
	for _, n := range names {
		t[kind+" "+n] = true
	}
}

func (t Traces) tree(kind, root string) {
	_ = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if kind != "cgroup" || e.IsDir() {
			t[kind+" "+p] = true
		}
		return nil
	})
}

// templates are what is there for the next pods, within bounds.
const templates = "file /run/coco/templates"

// ignored are traces that belong to the machine or to containerd itself, not to a pod.
func ignored(line string) bool {
	if base := filepath.Base(line); strings.HasPrefix(line, "cgroup ") && (base == "default" || base == "testing") {
		return true // one directory per containerd namespace, made and kept by runc too
	}
	if m := cgroupTop.FindStringSubmatch(line); m != nil && othersGroups[m[1]] {
		return true
	}
	return line == "file /run/coco" || line == "file /run/coco/netns" || strings.HasPrefix(line, templates)
}

// cgroupTop is the topmost group in the hierarchy that a line speaks of.
var cgroupTop = regexp.MustCompile(`^cgroup /sys/fs/cgroup/[^/]+/([^/]+)`)

// othersGroups are those of service managers, whose services and sessions come and go while tests run.
var othersGroups = map[string]bool{"system.slice": true, "user.slice": true, "init.scope": true, "process_api": true}

// Leaks waits until nothing is left that was not in before, for at most patience, and returns what
// still is there then. The time in which a template is made does not count. Lines for which a caller's ignore is true
// are not counted, nor are those about pods that other programs have started (AdoptOrphans).
func Leaks(ctx context.Context, before Traces, patience time.Duration, ignore ...func(line string) bool) ([]string,
	error,
) {
	deadline := time.Now().Add(patience)
	for {
		if making() { // it ends by itself
			deadline = time.Now().Add(patience)
		}
		now, err := TakeTraces()
		if err != nil {
			return nil, err
		}
		others := otherPods()
		isOther := func(line string) bool {
			return slices.ContainsFunc(others, func(name string) bool { return strings.Contains(line, name) })
		}
		var left []string
		for l := range now {
			if !before[l] && !isOther(l) && !ignored(l) &&
				!slices.ContainsFunc(ignore, func(f func(string) bool) bool { return f(l) }) {
				left = append(left, l)
			}
		}
		sort.Strings(left)
		if len(left) == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return left, nil
		}
		time.Sleep(50 * time.Millisecond) // the kernel has no event for "nothing is left"
	}
}
