// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ctrd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/coco-shim/coco/node/engine"
)

// Engine is a containerd of this host.
type Engine struct {
	name    string
	site    Site
	files   engine.Tree
	binary  string
	version string
	socket  string
	restart []string // command
	prefix  string   // below which our shims are
	options Options

	before   Dump // of the time of Plan
	handlers []engine.Handler
}

// Settings are what a distribution of containerd, or an administrator, has otherwise. Empty fields are found out.
type Settings struct {
	Name    string
	Root    string // configuration file
	DropIn  string
	Socket  string
	Binary  string
	Restart []string // command that restarts the daemon; none: systemctl, if there is systemd
	Prefix  string
	CRI     bool // take the CRI out of disabled_plugins
}

// Plain are the places of containerd itself.
func Plain(prefix string) Settings {
	return Settings{
		Name: "containerd", Root: "/etc/containerd/config.toml", DropIn: "/etc/containerd/conf.d/coco.toml",
		Socket: "/run/containerd/containerd.sock", Prefix: prefix,
	}
}

// Find looks at the containerd that the settings describe. It returns nil if there is none.
func Find(ctx context.Context, s Settings) (*Engine, error) {
	e := &Engine{
		name: s.Name, site: Site{Root: s.Root, DropIn: s.DropIn}, socket: s.Socket, binary: s.Binary, restart: s.Restart,
		prefix: s.Prefix, options: Options{EnableCRI: s.CRI},
	}
	exe, args, running := peer(ctx, s.Socket)
	if running && e.binary == "" {
		e.binary = exe
	}
	if file := configArg(args); running && file != "" {
		if !filepath.IsAbs(file) {
			return nil, fmt.Errorf("%s runs with the relative configuration file %s; name it with --containerd-config",
				exe, file)
		}
		e.site.Root = file
	}
	if e.binary == "" {
		path, err := exec.LookPath("containerd")
		if err != nil {
			return nil, nil //nolint:nilerr // there is none
		}
		e.binary = path
	}
	if len(e.restart) == 0 {
		if _, err := os.Stat("/run/systemd/system"); err == nil {
			e.restart = []string{"systemctl", "restart", "containerd"}
		}
	}
	var err error
	if e.version, e.site.Major, err = askVersion(ctx, e.binary); err != nil {
		return nil, err
	}
	e.site.Root, err = e.files.Resolve(e.site.Root)
	return e, err
}

// Name returns "containerd" or the name of the distribution that brings it.
func (e *Engine) Name() string { return e.name }

// Plan asks containerd for its configuration as it is, and returns the edits.
func (e *Engine) Plan(ctx context.Context, handlers []engine.Handler) ([]engine.Edit, []string, error) {
	var err error
	if e.before, err = AskDump(ctx, e.binary, e.site.Root, e.site.Major); err != nil {
		return nil, nil, fmt.Errorf("%s does not read its configuration as it is: %w", e.name, err)
	}
	e.handlers = handlers
	o := e.options
	if o.Runtimes, err = e.others(ctx); err != nil {
		return nil, nil, err
	}
	edits, err := Plan(e.site, e.files, handlers, o)
	if err != nil {
		return nil, nil, err
	}
	var notes []string
	if text, err := e.files.ReadFile(e.site.Root); err == nil && !o.EnableCRI && CRIDisabled(text) && len(handlers) > 0 {
		notes = append(notes, fmt.Sprintf("%s disables the CRI: pods of Kubernetes cannot use this containerd, ctr and "+
			"Docker can; --enable-cri changes that", e.site.Root))
	}
	return edits, notes, nil
}

// others are the runtimes that containerd has without ours. Where the CRI is disabled, they are those of the defaults.
func (e *Engine) others(ctx context.Context) (map[string]any, error) {
	d := e.before
	if e.site.Major < 2 && disabled(d) {
		out, err := run(ctx, e.binary, "config", "default")
		if err != nil {
			return nil, err
		}
		if d, err = ParseDump(out); err != nil {
			return nil, err
		}
	}
	others := map[string]any{}
	for name, r := range d.Runtimes() {
		if !isOurs(r) {
			others[name] = r
		}
	}
	return others, nil
}

// Verify compares what containerd makes of the files with what it made of them at the time of Plan.
func (e *Engine) Verify(ctx context.Context) error {
	after, err := AskDump(ctx, e.binary, e.site.Root, e.site.Major)
	if err != nil {
		return fmt.Errorf("%s would not start with the changed configuration: %w", e.name, err)
	}
	if disabled(e.before) != disabled(after) && e.options.EnableCRI {
		return e.verifyEnabled(after)
	}
	differences, missing := Compare(e.before, after, e.handlers)
	if len(missing) > 0 && e.criless(after) {
		missing = nil // nothing of the CRI is in the dump of 1.x
	}
	return e.verdict(differences, missing)
}

func (e *Engine) verdict(differences, missing []string) error {
	var errs []error
	if len(differences) > 0 {
		errs = append(errs, fmt.Errorf("other settings of %s would change:\n%s", e.name, strings.Join(differences, "\n")))
	}
	if len(missing) > 0 {
		errs = append(errs, fmt.Errorf("%s %s would not have the handlers %s", e.name, e.version,
			strings.Join(missing, ", ")))
	}
	return errors.Join(errs...)
}

func disabled(d Dump) bool {
	list, _ := d["disabled_plugins"].([]any)
	for _, p := range list {
		if s, ok := p.(string); ok && isCRI(s) {
			return true
		}
	}
	return false
}

func (e *Engine) criless(d Dump) bool { return disabled(d) && e.site.Major < 2 }

// verifyEnabled is Verify where the CRI is switched on or, at the end, off: its settings come or go, all others stay.
func (e *Engine) verifyEnabled(after Dump) error {
	without := func(d Dump) Dump {
		out := Dump{}
		for k, v := range d {
			out[k] = v
		}
		plugins := map[string]any{}
		all, _ := d["plugins"].(map[string]any)
		for name, p := range all {
			if !strings.HasPrefix(name, "io.containerd.cri.v1.") && name != "io.containerd.grpc.v1.cri" && name != "cri" {
				plugins[name] = p
			}
		}
		out["plugins"] = plugins
		return out
	}
	differences, _ := Compare(without(e.before), without(after), nil, "disabled_plugins")
	var missing []string
	if !disabled(after) {
		_, missing = Compare(nil, after, e.handlers)
	}
	return e.verdict(differences, missing)
}

// How says how the daemon is restarted.
func (e *Engine) How() string {
	if len(e.restart) == 0 {
		return "nothing: this host has no systemd; restart " + e.name + " yourself, or name a --restart-command"
	}
	return strings.Join(e.restart, " ")
}

// Restart restarts the daemon and waits until it has what its files say.
func (e *Engine) Restart(ctx context.Context) error {
	if len(e.restart) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, e.restart[0], e.restart[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("restart %s: %s: %w: %s", e.name, e.How(), err, lastLines(string(out)))
	}
	now, err := AskDump(ctx, e.binary, e.site.Root, e.site.Major)
	if err != nil {
		return err
	}
	return await(ctx, e.socket, now)
}

// State asks the running daemon.
func (e *Engine) State(ctx context.Context) engine.State {
	s := engine.State{Engine: e.name, Version: e.version, File: e.site.Root, Handlers: []string{}}
	if _, _, s.Running = peer(ctx, e.socket); !s.Running {
		s.Problem = "nothing listens at " + e.socket
		return s
	}
	runtimes, err := loaded(ctx, e.socket)
	if err != nil {
		s.Problem = err.Error()
		return s
	}
	s.Handlers = append(s.Handlers, shimsBelow(runtimes, e.prefix)...)
	return s
}
