// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine has what the kinds of container engines share: the handlers that they get, the edits of their files,
// and the questions that an installation asks them.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Handler is a name that pods may ask for, and the program that runs them.
type Handler struct {
	Name   string `json:"name"`
	Shim   string `json:"shim"`             // absolute path
	Config string `json:"config,omitempty"` // absolute path; "": the shim searches
}

// Edit is a file as it will be; nil Text is no file.
type Edit struct {
	Path string
	Text []byte
}

// Engine is a program of this host that starts containers.
type Engine interface {
	Name() string
	// Plan returns the edits that bring the handlers in, and none else of ours. Notes are for the administrator. It
	// changes nothing.
	Plan(ctx context.Context, handlers []Handler) (edits []Edit, notes []string, err error)
	// Verify asks the engine, before it is restarted, what it makes of the edited files. Its error names each setting that
	// would not be as it was at the time of Plan.
	Verify(ctx context.Context) error
	// Restart makes the running engine read its files, and waits for it. How says in words what it does.
	Restart(ctx context.Context) error
	How() string
	// State asks the running engine.
	State(ctx context.Context) State
}

// State is what a running engine says.
type State struct {
	Engine   string   `json:"engine"`
	Version  string   `json:"version,omitempty"`
	File     string   `json:"file"` // its configuration
	Running  bool     `json:"running"`
	Handlers []string `json:"handlers"` // those of coco that it has loaded
	Problem  string   `json:"problem,omitempty"`
}

// Tree reads files below a root: "/" for the host's own.
type Tree struct{ Root string }

func (t Tree) at(path string) string { return filepath.Join("/", t.Root, path) }

// ReadFile returns nil for a path with nothing.
func (t Tree) ReadFile(path string) ([]byte, error) {
	text, err := os.ReadFile(t.at(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if text == nil && err == nil {
		text = []byte{}
	}
	return text, err
}

// Glob returns the paths that fit a pattern, in order.
func (t Tree) Glob(pattern string) ([]string, error) {
	found, err := filepath.Glob(t.at(pattern))
	for i, f := range found {
		found[i] = filepath.Join("/", strings.TrimPrefix(f, strings.TrimSuffix(t.at("/"), "/")))
	}
	return found, err
}

// Exists tells whether something is at a path.
func (t Tree) Exists(path string) bool {
	_, err := os.Stat(t.at(path))
	return err == nil
}

// Resolve follows symbolic links at the end of a path, so that the file behind them is edited and the link stays.
func (t Tree) Resolve(path string) (string, error) {
	for range 20 {
		target, err := os.Readlink(t.at(path))
		if err != nil {
			return path, nil //nolint:nilerr // it is no link, or nothing is there
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = filepath.Clean(target)
	}
	return "", fmt.Errorf("%s is a link to itself", path)
}
