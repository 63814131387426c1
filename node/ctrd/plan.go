// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ctrd knows how containerd's configuration gets runtime handlers without any other change of it.
//
// Plan is a pure function of the files that are there. Dump asks containerd itself how it reads the result, and Compare
// compares the answers: how versions of the file merge differs from release to release.
//
// Measured with containerd 1.6, 1.7, 2.1 and 2.4:
//   - 1.x replaces the whole CRI section of a file by that of an imported one, and loses its default runtime runc as
//     soon as a file names any runtime. Handlers are appended to the file that has the CRI section, and runc is named
//     with them.
//   - 2.x merges tables by name, if the imported file has the version of the root file: a version 3 file beside a
//     version 2 root loses other runtimes on 2.1. Handlers are in a file of their own.
//   - Without a root file no release reads imports, so one is made.
package ctrd

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coco-shim/coco/node/engine"
	"github.com/coco-shim/coco/node/textedit"
)

// Site is a containerd on this host: what is where.
type Site struct {
	Root   string // path of the configuration file
	DropIn string // path of the file of our own, for a root file that imports none of another directory
	Major  int    // of containerd's version
}

// Files reads what is there now. ReadFile returns nil without an error for a path with nothing.
type Files interface {
	ReadFile(path string) ([]byte, error)
	Glob(pattern string) ([]string, error)
}

// Options are choices of the administrator.
type Options struct {
	EnableCRI bool // take "cri" out of disabled_plugins
	// Runtimes that containerd has, by name. 1.x forgets them when a file names others: they are then written beside ours.
	Runtimes map[string]any
}

// base is a configuration without anything of ours.
type base struct {
	site    Site
	root    []byte // nil: no file
	version int    // that the root file says; 0 if it says none
	imports []string
	edits   map[string][]byte
}

// section is the path of the table whose members are runtimes.
func section(version int) string {
	switch {
	case version >= 3:
		return `plugins."io.containerd.cri.v1.runtime".containerd.runtimes`
	case version == 2:
		return `plugins."io.containerd.grpc.v1.cri".containerd.runtimes`
	}
	return `plugins.cri.containerd.runtimes`
}

// Plan returns the files that differ once the handlers are there; without handlers, once nothing of ours is there. It
// does not know what containerd will make of them.
func Plan(site Site, files Files, handlers []engine.Handler, o Options) ([]engine.Edit, error) {
	b, err := strip(site, files)
	if err != nil {
		return nil, err
	}
	if len(handlers) > 0 {
		add := b.addDropIn
		if site.Major < 2 {
			add = b.appendTo
		}
		if err := add(files, handlers, o); err != nil {
			return nil, err
		}
	}
	var out []engine.Edit
	for path, text := range b.edits {
		now, err := files.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(now, text) || (now == nil) != (text == nil) {
			out = append(out, engine.Edit{Path: path, Text: text})
		}
	}
	slices.SortFunc(out, func(a, b engine.Edit) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// strip reads the configuration and takes out what an earlier run has put in.
func strip(site Site, files Files) (*base, error) {
	b := &base{site: site, edits: map[string][]byte{}}
	text, err := files.ReadFile(site.Root)
	if err != nil {
		return nil, err
	}
	if b.root, err = textedit.Strip(text); err != nil {
		return nil, fmt.Errorf("%s: %w", site.Root, err)
	}
	if b.root != nil {
		b.root = textedit.RemoveFromArray(b.root, "imports", strconv.Quote(site.DropIn))
	}
	b.edits[site.Root] = b.root
	var head struct {
		Version int      `toml:"version"`
		Imports []string `toml:"imports"`
	}
	if _, err := toml.Decode(string(b.root), &head); err != nil {
		return nil, fmt.Errorf("%s is no TOML: %w", site.Root, err)
	}
	b.version = head.Version
	for _, pattern := range head.Imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(site.Root), pattern)
		}
		b.imports = append(b.imports, filepath.Clean(pattern))
	}
	return b, b.stripImports(files)
}

// stripImports takes what is ours out of the imported files. A file of ours has nothing else in it, and goes.
func (b *base) stripImports(files Files) error {
	paths := []string{b.site.DropIn}
	for _, pattern := range b.imports {
		found, err := files.Glob(pattern)
		if err != nil {
			return fmt.Errorf("imports of %s: %w", b.site.Root, err)
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		text, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		if !textedit.Has(text) {
			continue
		}
		if b.edits[path], err = textedit.Strip(text); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// addDropIn is the way of containerd 2.x.
func (b *base) addDropIn(files Files, handlers []engine.Handler, o Options) (err error) {
	version := b.version
	if b.root == nil {
		version = 3
	}
	version = min(max(version, 2), 3)
	path, named := b.site.DropIn, false
	for _, pattern := range b.imports {
		if ok, _ := filepath.Match(pattern, path); ok {
			named = true
		}
	}
	for _, pattern := range b.imports {
		if dir := filepath.Dir(pattern); !named && filepath.Base(pattern) == "*.toml" && !strings.ContainsAny(dir, "*?[") {
			path, named = filepath.Join(dir, filepath.Base(b.site.DropIn)), true
		}
	}
	if err := b.vacant(files, path); err != nil {
		return err
	}
	b.edits[path] = textedit.Append(nil, fmt.Sprintf("version = %d\n%s", version, Tables(version, handlers)))
	root := b.root
	if o.EnableCRI {
		if root, err = enableCRI(root); err != nil {
			return fmt.Errorf("%s: %w", b.site.Root, err)
		}
	}
	element := strconv.Quote(path)
	switch {
	case root == nil:
		root = textedit.Append(nil, fmt.Sprintf("version = %d\nimports = [%s]\n", version, element))
	case named:
	case len(b.imports) > 0 || hasKey(root, "imports"):
		root, err = textedit.AddToArray(root, "imports", element)
	default:
		root = textedit.Insert(root, "imports = ["+element+"]\n")
	}
	if err != nil {
		return fmt.Errorf("%s: %w; add %s to imports by hand, then run the command again", b.site.Root, err, element)
	}
	b.edits[b.site.Root] = root
	return b.check(root, b.root, o)
}

// vacant refuses a path where somebody else's file is.
func (b *base) vacant(files Files, path string) error {
	text, err := files.ReadFile(path)
	if err != nil {
		return err
	}
	if text != nil && !textedit.Has(text) {
		return fmt.Errorf("%s is there and was not written by coco node; move it away, then run the command again", path)
	}
	return nil
}

// appendTo is the way of containerd 1.x.
func (b *base) appendTo(files Files, handlers []engine.Handler, o Options) (err error) {
	path, text, version := b.site.Root, b.root, b.version
	if b.root == nil {
		version = 2
	}
	for _, pattern := range b.imports {
		found, err := files.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			now, err := files.ReadFile(f)
			if err != nil {
				return err
			}
			if stripped, ok := b.edits[f]; ok {
				now = stripped
			}
			if v, cri := criOf(now); cri {
				path, text, version = f, now, v
			}
		}
	}
	if version > 2 {
		return fmt.Errorf("%s says version = %d, which containerd 1.x does not read", path, version)
	}
	before := text
	if o.EnableCRI && path == b.site.Root {
		if text, err = enableCRI(text); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	head := ""
	if text == nil {
		head = "version = 2\n"
	}
	kept := ""
	if !namesRuntimes(text) {
		if kept, err = keep(version, o.Runtimes); err != nil {
			return err
		}
	}
	text = textedit.Append(text, head+kept+Tables(version, handlers))
	b.edits[path] = text
	return b.check(text, before, o)
}

// criOf returns the version of a file, and whether it has a CRI section.
func criOf(text []byte) (version int, has bool) {
	var f struct {
		Version int            `toml:"version"`
		Plugins map[string]any `toml:"plugins"`
	}
	if _, err := toml.Decode(string(text), &f); err != nil {
		return 0, false // containerd says it better
	}
	_, v1 := f.Plugins["cri"]
	_, v2 := f.Plugins["io.containerd.grpc.v1.cri"]
	return f.Version, v1 || v2
}

// namesRuntimes tells whether a file has runtimes of its own.
func namesRuntimes(text []byte) bool {
	d, err := ParseDump(text)
	if err != nil {
		return false // check reports it
	}
	for _, runtimes := range d.runtimesOf() {
		if len(runtimes) > 0 {
			return true
		}
	}
	return false
}

func hasKey(text []byte, key string) bool {
	var all map[string]any
	_, err := toml.Decode(string(text), &all)
	_, ok := all[key]
	return err == nil && ok
}

// enableCRI takes the CRI plugin out of disabled_plugins, if it is there.
func enableCRI(text []byte) ([]byte, error) {
	var head struct {
		Disabled []string `toml:"disabled_plugins"`
	}
	if _, err := toml.Decode(string(text), &head); err != nil {
		return nil, err
	}
	rest := slices.DeleteFunc(slices.Clone(head.Disabled), isCRI)
	if len(rest) == len(head.Disabled) {
		return text, nil
	}
	var quoted []string
	for _, r := range rest {
		quoted = append(quoted, strconv.Quote(r))
	}
	return textedit.Replace(text, "disabled_plugins", "disabled_plugins = ["+strings.Join(quoted, ", ")+"]\n")
}

func isCRI(plugin string) bool {
	return slices.Contains([]string{"cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"}, plugin)
}

// CRIDisabled tells whether a root file switches the CRI off, as Docker's package of containerd does.
func CRIDisabled(text []byte) bool {
	var head struct {
		Disabled []string `toml:"disabled_plugins"`
	}
	_, err := toml.Decode(string(text), &head)
	return err == nil && slices.ContainsFunc(head.Disabled, isCRI)
}

// Tables are the entries of the handlers, in the form of a version of the file.
func Tables(version int, handlers []engine.Handler) string {
	var s strings.Builder
	for _, h := range handlers {
		name := section(version) + "." + key(h.Name)
		fmt.Fprintf(&s, "[%s]\n  runtime_type = \"io.containerd.coco.v2\"\n  runtime_path = %q\n", name, h.Shim)
		s.WriteString("  pod_annotations = [\"io.coco.*\", \"io.katacontainers.*\"]\n")
		s.WriteString("  privileged_without_host_devices = true\n")
		// The second tells the shim that a container is privileged: it gets the devices of its guest.
		s.WriteString("  privileged_without_host_devices_all_devices_allowed = true\n")
		if h.Config != "" {
			fmt.Fprintf(&s, "  [%s.options]\n    ConfigPath = %q\n", name, h.Config)
		}
	}
	return s.String()
}

// key quotes a name that is no bare key.
func key(name string) string {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == "" {
		return name
	}
	return strconv.Quote(name)
}

// keep writes runtimes as the dump has them.
func keep(version int, runtimes map[string]any) (string, error) {
	if len(runtimes) == 0 {
		return "", nil
	}
	var s strings.Builder
	for _, name := range sortedKeys(runtimes) {
		table, ok := runtimes[name].(map[string]any)
		if !ok {
			return "", fmt.Errorf("runtime %s of containerd's configuration is no table", name)
		}
		if err := writeTable(&s, section(version)+"."+key(name), table); err != nil {
			return "", err
		}
	}
	return s.String(), nil
}

// writeTable writes a table, and the tables in it behind it.
func writeTable(s *strings.Builder, name string, table map[string]any) error {
	fmt.Fprintf(s, "[%s]\n", name)
	for _, k := range sortedKeys(table) {
		if _, sub := table[k].(map[string]any); sub {
			continue
		}
		var one bytes.Buffer
		if err := toml.NewEncoder(&one).Encode(map[string]any{k: table[k]}); err != nil {
			return fmt.Errorf("write %s of %s: %w", k, name, err)
		}
		s.WriteString("  " + one.String())
	}
	for _, k := range sortedKeys(table) {
		if sub, ok := table[k].(map[string]any); ok {
			if err := writeTable(s, name+"."+key(k), sub); err != nil {
				return err
			}
		}
	}
	return nil
}

var errNotExact = errors.New("the file cannot be changed so that all other settings stay; it may define runtimes as " +
	"inline tables, or plugins twice")

// check holds the new text of a file against the old one: without what is ours it must be the same, as text and as
// TOML.
func (b *base) check(text, before []byte, o Options) error {
	back, err := textedit.Strip(text)
	if err == nil && back != nil {
		back = textedit.RemoveFromArray(back, "imports", strconv.Quote(b.site.DropIn))
	}
	if err != nil || !bytes.Equal(back, before) {
		return fmt.Errorf("%s: %w", b.site.Root, errNotExact)
	}
	var is, was map[string]any
	if _, err := toml.Decode(string(text), &is); err != nil {
		return fmt.Errorf("%s: %w: %w", b.site.Root, errNotExact, err)
	}
	if _, err := toml.Decode(string(before), &was); err != nil {
		return err
	}
	for key, old := range was {
		if key == "plugins" || key == "imports" || o.EnableCRI && key == "disabled_plugins" {
			continue // plugins and imports: Compare asks containerd
		}
		if fmt.Sprint(old) != fmt.Sprint(is[key]) {
			return fmt.Errorf("%s: %s: %w", b.site.Root, key, errNotExact)
		}
	}
	return nil
}
