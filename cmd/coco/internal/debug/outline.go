// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/cmd/coco/internal/pods"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/virtcontainers/state"
)

const removed = "[removed]"

// secrets are texts that look like one, with what stays of them. They are the second line: structured files have
// their secrets left out by field.
var secrets = []struct {
	find *regexp.Regexp
	keep string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(-----END [A-Z0-9 ]+-----|\z)`), removed},
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), removed},
	{regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}`), "$1 " + removed},
	{regexp.MustCompile(`(://)[^/\s"@]+@`), "$1" + removed + "@"},
	{regexp.MustCompile(`(?i)([a-z0-9_-]*` +
		`(?:token|secret|passw(?:or)?d|passphrase|api[-_]?key|private[-_]?key|credential)` +
		`[a-z0-9_-]*"?\s*[:=]\s*)("(?:[^"\\]|\\.)*"|[^\s,;&"]+)`), `$1"` + removed + `"`},
}

func scrub(text []byte) []byte {
	for _, s := range secrets {
		text = s.find.ReplaceAll(text, []byte(s.keep))
	}
	return text
}

// outlineConfig leaves out the values of kernel parameters: a proxy's password may be one.
func outlineConfig(c configs.Config) configs.Config {
	var names []string
	for _, word := range strings.Fields(c.Hypervisor.KernelParams) {
		name, _, has := strings.Cut(word, "=")
		if has {
			name += "=" + removed
		}
		names = append(names, name)
	}
	c.Hypervisor.KernelParams = strings.Join(names, " ")
	return c
}

// journal has the fields of state.Pod that are no secret.
type journal struct {
	Version     int            `json:"version"`
	ID          string         `json:"id"`
	Namespace   string         `json:"namespace"`
	Bundle      string         `json:"bundle"`
	StateDir    string         `json:"state_dir"`
	VMM         *state.Process `json:"vmm,omitempty"`
	Helper      *state.Process `json:"helper,omitempty"`
	User        uint32         `json:"user"`
	Cgroups     []string       `json:"cgroups"`
	NetNS       string         `json:"netns"`
	Disks       int            `json:"disks"`
	Hooks       []string       `json:"hooks"`       // paths
	Annotations []string       `json:"annotations"` // names
}

func outlineJournal(p state.Pod) journal {
	j := journal{
		Version: p.Version, ID: p.ID, Namespace: p.Namespace, Bundle: p.Bundle, StateDir: p.StateDir, VMM: p.VMM,
		Helper: p.Helper, User: p.User, Cgroups: p.Cgroups, NetNS: p.NetNS, Disks: len(p.Disks),
		Annotations: slices.Sorted(maps.Keys(p.Annotations)),
	}
	for _, h := range p.Hooks {
		j.Hooks = append(j.Hooks, h.Path)
	}
	return j
}

// specOutline has the fields of a specification that are no secrets, by name.
type specOutline struct {
	Program     string                 `json:"program_sha256"` // of the first argument
	Arguments   int                    `json:"arguments"`
	Environment []string               `json:"environment"` // names
	Terminal    bool                   `json:"terminal"`
	Mounts      []string               `json:"mounts"` // type and place in the container
	Namespaces  []specs.LinuxNamespace `json:"namespaces"`
	Annotations []string               `json:"annotations"` // names
}

func outlineSpec(s *specs.Spec) specOutline {
	o := specOutline{Annotations: slices.Sorted(maps.Keys(s.Annotations))}
	if p := s.Process; p != nil {
		if len(p.Args) > 0 {
			sum := sha256.Sum256([]byte(p.Args[0]))
			o.Program = hex.EncodeToString(sum[:])
		}
		o.Arguments, o.Terminal = len(p.Args), p.Terminal
		for _, e := range p.Env {
			name, _, _ := strings.Cut(e, "=")
			o.Environment = append(o.Environment, name)
		}
	}
	for _, m := range s.Mounts {
		o.Mounts = append(o.Mounts, m.Type+" "+m.Destination)
	}
	if s.Linux != nil {
		o.Namespaces = s.Linux.Namespaces
	}
	return o
}

// addPod adds a pod's files in outline.
func (b *bundle) addPod(p pods.Place) {
	dir := "pods/" + filepath.Base(filepath.Clean("/"+p.ID))
	b.add(dir+"/files.txt", "mode, bytes and name of the pod's files, none of their content", b.list(p.Dir, p.Bundle))
	if p.Bundle == "" {
		b.problems = append(b.problems, fmt.Errorf("pod %s: its bundle was not found", p.ID))
		return
	}
	if j, err := state.Load(p.Bundle); err != nil {
		b.problems = append(b.problems, fmt.Errorf("pod %s: %w", p.ID, err))
	} else {
		b.addJSON(dir+"/journal.json", "what the pod holds on the host", outlineJournal(j))
	}
	if s, err := pods.ReadSpec(p.Bundle); err != nil {
		b.problems = append(b.problems, fmt.Errorf("pod %s: %w", p.ID, err))
	} else {
		b.addJSON(dir+"/spec.json", "outline of the specification: names, no values", outlineSpec(s))
	}
}

// list names files, two levels deep.
func (b *bundle) list(dirs ...string) []byte {
	var out []byte
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return nil //nolint:nilerr // it has gone meanwhile
			}
			out = fmt.Appendf(out, "%s %9d %s\n", info.Mode(), info.Size(), path)
			if d.IsDir() && strings.Count(strings.TrimPrefix(path, dir), "/") >= 2 || d.IsDir() && d.Name() == "rootfs" {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			b.problems = append(b.problems, fmt.Errorf("list files: %w", err))
		}
	}
	return out
}
