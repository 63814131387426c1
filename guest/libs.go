// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// libDirs are the directories in which Debian's dynamic loader finds libraries, after the merge of / and /usr.
var libDirs = []string{"usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64"}

// fileTree is the content of the packages gathered so far.
type fileTree map[string]tarFile

// add takes a package's files. Paths below /lib, /lib64 and /bin, which are links in a merged
// system, are noted below /usr.
func (t fileTree) add(files []tarFile) {
	for _, f := range files {
		f.path = usrPath(f.path)
		t[f.path] = f
	}
}

func usrPath(p string) string {
	top, _, _ := strings.Cut(p, "/")
	switch top {
	case "lib", "lib64", "bin", "sbin":
		return "usr/" + p
	}
	return p
}

// follow returns the file at p and the symbolic links passed on the way, or false.
func (t fileTree) follow(p string) ([]tarFile, bool) {
	var chain []tarFile
	for range 8 {
		f, ok := t[p]
		if !ok {
			return nil, false
		}
		chain = append(chain, f)
		if f.target == "" {
			return chain, true
		}
		if path.IsAbs(f.target) {
			p = usrPath(strings.TrimPrefix(path.Clean(f.target), "/"))
		} else {
			p = usrPath(path.Join(path.Dir(f.path), f.target))
		}
	}
	return nil, false
}

func (t fileTree) library(soname string) ([]tarFile, bool) {
	if path.IsAbs(soname) {
		return t.follow(usrPath(strings.TrimPrefix(path.Clean(soname), "/")))
	}
	for _, dir := range libDirs {
		if chain, ok := t.follow(path.Join(dir, soname)); ok {
			return chain, true
		}
	}
	return nil, false
}

// needs lists what must be there for an ELF file to run: the path of its interpreter and the names
// of its libraries.
func needs(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, err
		}
		libs = append(libs, strings.TrimRight(string(b), "\x00"))
	}
	return libs, nil
}

// closure returns the program with all libraries it needs, and the names of those that no package
// of the tree has.
func (t fileTree) closure(program string) (files []tarFile, missing []string, err error) {
	chain, ok := t.follow(program)
	if !ok {
		return nil, nil, fmt.Errorf("no package has /%s", program)
	}
	got := map[string]bool{}
	for queue := chain; len(queue) > 0; {
		f := queue[0]
		queue = queue[1:]
		if got[f.path] {
			continue
		}
		got[f.path] = true
		files = append(files, f)
		if f.target != "" {
			continue
		}
		libs, err := needs(f.data)
		if err != nil {
			return nil, nil, fmt.Errorf("read the libraries that /%s needs: %w", f.path, err)
		}
		for _, lib := range libs {
			if chain, ok := t.library(lib); ok {
				queue = append(queue, chain...)
			} else if !slices.Contains(missing, lib) {
				missing = append(missing, lib)
			}
		}
	}
	return files, missing, nil
}

func wantProgramFile(name string) bool {
	name = usrPath(name)
	return strings.HasPrefix(name, "usr/bin/") || strings.HasPrefix(name, "usr/sbin/") ||
		strings.HasPrefix(name, "usr/lib/x86_64-linux-gnu/") || strings.HasPrefix(name, "usr/lib64/")
}

// runtimeFiles fetches the runtime's package and, level by level, its dependencies until every library
// that the program needs is there. Packages without a part in it are not recorded.
func (b *builder) runtimeFiles(ctx context.Context, name, program string) ([]tarFile, error) {
	tree := fileTree{}
	level, seen := []string{name}, map[string]bool{name: true}
	byOrigin := map[string]Package{}
	for {
		pkgs, err := b.resolveAll(ctx, level)
		if err != nil {
			return nil, err
		}
		debs, err := b.apt.fetch(ctx, pkgs...)
		if err != nil {
			return nil, err
		}
		level = nil
		for i, deb := range debs {
			files, err := unpackDeb(ctx, deb, pkgs[i], wantProgramFile)
			if err != nil {
				return nil, err
			}
			tree.add(files)
			byOrigin[pkgs[i].String()] = pkgs[i]
			deps, err := debDepends(ctx, deb)
			if err != nil {
				return nil, err
			}
			for _, d := range deps {
				if !seen[d] {
					seen[d] = true
					level = append(level, d)
				}
			}
		}
		files, missing, err := tree.closure(program)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(missing) == 0 {
			for _, f := range files {
				b.record(byOrigin[f.origin])
			}
			return files, nil
		}
		if len(level) == 0 {
			return nil, fmt.Errorf("%s: no package that it depends on has %s", name, strings.Join(missing, ", "))
		}
	}
}
