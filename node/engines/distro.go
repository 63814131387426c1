// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package engines has the container engines besides a containerd of the host's own: Docker, CRI-O, and the
// distributions of Kubernetes that bring a containerd and write its configuration themselves, each by its own
// documented rule.
//
// Where the files are rules of others, the plan of each engine is a pure function of the files that are there.
package engines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/coco-shim/coco/node/ctrd"
	"github.com/coco-shim/coco/node/engine"
	"github.com/coco-shim/coco/node/textedit"
)

// kind is an engine by its rules.
type kind struct {
	name string
	sign string // path that is there where the engine is
	plan func(engine.Tree, []engine.Handler) ([]engine.Edit, error)
	// ask returns the names of all handlers that the running engine has, and their shims where it says them.
	ask     func(ctx context.Context, socket string) (map[string]string, error)
	file    string // for people
	socket  string
	restart func(engine.Tree) []string // nil: the engine follows its files
	hangup  bool                       // SIGHUP is enough, where there is no systemd
	verify  func(context.Context) error
}

var kinds = []kind{
	rancher("k3s", "k3s", "k3s-agent"), rancher("rke2", "rke2-server", "rke2-agent"), microk8s, k0s, crio, docker,
}

// rancher is k3s or RKE2. They render config.toml at each start, from a template of the user's if there is one; newer
// releases make it import a directory.
func rancher(name, server, agent string) kind {
	dir := "/var/lib/rancher/" + name + "/agent/etc/containerd/"
	return kind{
		name: name, sign: dir, file: dir + "config.toml", socket: "/run/k3s/containerd/containerd.sock", ask: ctrd.Loaded,
		plan: func(t engine.Tree, h []engine.Handler) ([]engine.Edit, error) { return planRancher(t, dir, h) },
		restart: func(t engine.Tree) []string {
			unit := server
			for _, d := range []string{"/etc/systemd/system/", "/usr/local/lib/systemd/system/", "/usr/lib/systemd/system/"} {
				if t.Exists(d+agent+".service") && !t.Exists(d+server+".service") {
					unit = agent
				}
			}
			return []string{"systemctl", "restart", unit}
		},
	}
}

func planRancher(t engine.Tree, dir string, h []engine.Handler) ([]engine.Edit, error) {
	rendered, err := t.ReadFile(dir + "config.toml")
	if err != nil {
		return nil, err
	}
	if rendered == nil && len(h) > 0 {
		return nil, fmt.Errorf("%sconfig.toml is not there: start the node once, then install coco", dir)
	}
	var head struct {
		Version int      `toml:"version"`
		Imports []string `toml:"imports"`
	}
	if _, err := toml.Decode(string(rendered), &head); err != nil {
		return nil, fmt.Errorf("%sconfig.toml is no TOML: %w", dir, err)
	}
	template, dropIn := dir+"config.toml.tmpl", dir+"config.toml.d/coco.toml"
	if head.Version >= 3 {
		template, dropIn = dir+"config-v3.toml.tmpl", dir+"config-v3.toml.d/coco.toml"
	}
	want := map[string]string{}
	tables := ctrd.Tables(head.Version, h)
	switch {
	case len(h) == 0:
	case slices.ContainsFunc(head.Imports, func(i string) bool { return matches(i, dropIn) }):
		want[dropIn] = fmt.Sprintf("version = %d\n%s", head.Version, tables)
	default:
		base, err := t.ReadFile(template)
		if err != nil {
			return nil, err
		}
		if base, err = textedit.Strip(base); err != nil {
			return nil, fmt.Errorf("%s: %w", template, err)
		}
		if base == nil {
			tables = "{{ template \"base\" . }}\n" + tables
		}
		want[template] = tables
	}
	return edits(t, []string{
		dir + "config.toml.tmpl", dir + "config-v3.toml.tmpl",
		dir + "config.toml.d/coco.toml", dir + "config-v3.toml.d/coco.toml",
	}, want)
}

func matches(pattern, path string) bool {
	ok, err := filepath.Match(pattern, path)
	return ok && err == nil
}

// microk8s renders containerd.toml from a template that is the user's to change.
var microk8s = kind{
	name: "microk8s", sign: microTemplate, file: microTemplate,
	socket: "/var/snap/microk8s/common/run/containerd.sock", ask: ctrd.Loaded,
	plan: func(t engine.Tree, h []engine.Handler) ([]engine.Edit, error) {
		text, err := t.ReadFile(microTemplate)
		if err != nil || text == nil {
			return nil, err
		}
		version, err := versionOf(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", microTemplate, err)
		}
		want := map[string]string{}
		if len(h) > 0 {
			want[microTemplate] = ctrd.Tables(version, h)
		}
		return edits(t, []string{microTemplate}, want)
	},
	restart: func(engine.Tree) []string { return []string{"snap", "restart", "microk8s.daemon-containerd"} },
}

const microTemplate = "/var/snap/microk8s/current/args/containerd-template.toml"

// k0s merges the CRI sections of a directory, and follows it while it runs.
var k0s = kind{
	name: "k0s", sign: "/etc/k0s/", file: k0sDropIn, socket: "/run/k0s/containerd.sock", ask: ctrd.Loaded,
	plan: func(t engine.Tree, h []engine.Handler) ([]engine.Edit, error) {
		version := 2
		text, err := t.ReadFile("/etc/k0s/containerd.toml")
		if err != nil {
			return nil, err
		}
		if text != nil {
			if version, err = versionOf(text); err != nil {
				return nil, fmt.Errorf("/etc/k0s/containerd.toml: %w", err)
			}
		}
		want := map[string]string{}
		if len(h) > 0 {
			want[k0sDropIn] = fmt.Sprintf("version = %d\n%s", version, ctrd.Tables(version, h))
		}
		return edits(t, []string{k0sDropIn}, want)
	},
}

const k0sDropIn = "/etc/k0s/containerd.d/coco.toml"

// versionOf reads the version of a file, 2 if it says none.
func versionOf(text []byte) (int, error) {
	var head struct {
		Version int `toml:"version"`
	}
	if _, err := toml.Decode(string(text), &head); err != nil {
		return 0, fmt.Errorf("it is no TOML: %w", err)
	}
	return min(max(head.Version, 2), 3), nil
}

// crio reads all files of a directory. Its runtime type "vm" is a shim of containerd's protocol.
var crio = kind{
	name: "crio", sign: "/etc/crio/", file: crioFile, socket: "/var/run/crio/crio.sock", ask: ctrd.LoadedNames,
	plan: func(t engine.Tree, h []engine.Handler) ([]engine.Edit, error) {
		var s strings.Builder
		for _, r := range h {
			fmt.Fprintf(&s, "[crio.runtime.runtimes.%q]\nruntime_path = %q\nruntime_type = \"vm\"\nruntime_root = \"/run/vc\"\n"+
				"privileged_without_host_devices = true\n", r.Name, r.Shim)
			if r.Config != "" {
				fmt.Fprintf(&s, "runtime_config_path = %q\n", r.Config)
			}
		}
		want := map[string]string{}
		if len(h) > 0 {
			want[crioFile] = s.String()
		}
		return edits(t, []string{crioFile}, want)
	},
	restart: func(engine.Tree) []string { return []string{"systemctl", "restart", "crio"} },
}

const crioFile = "/etc/crio/crio.conf.d/99-coco.conf"

// edits brings lines to the ends of files, and takes what an earlier run has put into any of the paths away.
func edits(t engine.Tree, paths []string, want map[string]string) ([]engine.Edit, error) {
	var out []engine.Edit
	for _, path := range paths {
		resolved, err := t.Resolve(path)
		if err != nil {
			return nil, err
		}
		now, err := t.ReadFile(resolved)
		if err != nil {
			return nil, err
		}
		text, err := textedit.Strip(now)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", resolved, err)
		}
		if lines, ok := want[path]; ok {
			base := text
			text = textedit.Append(base, lines)
			if back, err := textedit.Strip(text); err != nil || !bytes.Equal(back, base) {
				return nil, fmt.Errorf("%s cannot be changed so that all other lines stay", resolved)
			}
		}
		if !bytes.Equal(now, text) || (now == nil) != (text == nil) {
			out = append(out, engine.Edit{Path: resolved, Text: text})
		}
	}
	return out, nil
}

// Engine is one of the kinds, on this host.
type Engine struct {
	kind
	files  engine.Tree
	prefix string
	want   []string // names, of the last plan
}

// Names are the engines that Find knows.
func Names() []string {
	var out []string
	for _, k := range kinds {
		out = append(out, k.name)
	}
	return out
}

// Find returns the engines that are on a host whose files are below a root.
func Find(root, prefix string) []engine.Engine {
	var out []engine.Engine
	for _, k := range kinds {
		if t := (engine.Tree{Root: root}); t.Exists(k.sign) {
			out = append(out, &Engine{kind: k, files: t, prefix: prefix})
		}
	}
	return out
}

// Name returns the engine's name.
func (e *Engine) Name() string { return e.name }

// Plan returns the edits by the engine's rules.
func (e *Engine) Plan(_ context.Context, handlers []engine.Handler) ([]engine.Edit, []string, error) {
	e.want = nil
	for _, h := range handlers {
		e.want = append(e.want, h.Name)
	}
	edits, err := e.plan(e.files, handlers)
	return edits, nil, err
}

// Verify asks the engine's program, if it has a command for that.
func (e *Engine) Verify(ctx context.Context) error {
	if e.verify == nil {
		return nil
	}
	return e.verify(ctx)
}

// How says how the engine gets to know its files.
func (e *Engine) How() string {
	switch {
	case e.restart == nil:
		return "itself: it follows its files"
	case !systemd() && e.hangup:
		return "SIGHUP"
	case !systemd():
		return "nothing: this host has no systemd; run " + strings.Join(e.restart(e.files), " ") + " yourself"
	}
	return strings.Join(e.restart(e.files), " ")
}

func systemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// startTimeout bounds a restart: that of k3s takes the API server with it.
const startTimeout = 3 * time.Minute

// Restart runs the engine's command and waits until it has the handlers of the last plan.
func (e *Engine) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	switch {
	case e.restart == nil:
	case !systemd() && e.hangup:
		if err := ctrd.Hangup(ctx, e.socket); err != nil {
			return fmt.Errorf("restart %s: %w", e.name, err)
		}
	case !systemd():
		return nil // How says so
	default:
		command := e.restart(e.files)
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("restart %s: %s: %w: %s", e.name, e.How(), err, strings.TrimSpace(string(out)))
		}
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		runtimes, err := e.ask(ctx, e.socket)
		for _, name := range e.want {
			if _, ok := runtimes[name]; !ok && err == nil {
				err = fmt.Errorf("it has not loaded %s", name)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after the restart of %s: %w", e.name, err)
		case <-tick.C:
		}
	}
}

// State asks the running engine.
func (e *Engine) State(ctx context.Context) engine.State {
	s := engine.State{Engine: e.name, File: e.file, Handlers: []string{}}
	runtimes, err := e.ask(ctx, e.socket)
	switch {
	case errors.Is(err, ctrd.ErrNotRunning):
		s.Problem = err.Error()
		return s
	case err != nil:
		s.Running, s.Problem = true, err.Error()
		return s
	}
	s.Running = true
	for name, shim := range runtimes {
		// CRI-O and Docker name no paths: a runtime with one of our names is ours.
		if strings.HasPrefix(shim, e.prefix+"/") ||
			shim == "" && (strings.HasPrefix(name, "coco") || slices.Contains(e.want, name)) {
			s.Handlers = append(s.Handlers, name)
		}
	}
	slices.Sort(s.Handlers)
	return s
}
