// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coco-shim/coco/cmd/coco/internal/version"
)

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newRootCmd()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestTheFlagTellsTheVersion(t *testing.T) {
	if out, err := run(t, "--version"); err != nil || out != "coco "+version.Get().Version+"\n" {
		t.Errorf("coco --version = %q, %v", out, err)
	}
}

func TestHelpListsEveryCommand(t *testing.T) {
	out, err := run(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		line := regexp.MustCompile(`(?m)^  ` + c.Name() + ` +` + regexp.QuoteMeta(c.Short) + `$`)
		if c.Short == "" || !line.MatchString(out) {
			t.Errorf("coco --help does not list %s:\n%s", c.Name(), out)
		}
	}
}

// span is code in a line of prose that begins with the program's name; a line of a fenced block is code as a whole.
var span = regexp.MustCompile("`(coco [^`]*)`")

// noCommands are spans that begin with the name and are something else.
var noCommands = []string{"coco anonymous SNP ID key …", "coco content v1"}

func TestThePagesNameOnlyCommandsThatAreThere(t *testing.T) {
	found := 0
	check := func(path, code string) {
		words := strings.Fields(code)
		if len(words) < 2 || words[0] != "coco" || slices.Contains(noCommands, code) {
			return
		}
		found++
		names := slices.DeleteFunc(words[1:min(3, len(words))], func(w string) bool { return !name.MatchString(w) })
		cmd, rest, err := newRootCmd().Find(names)
		if err != nil || cmd.Hidden || !cmd.HasParent() || len(rest) > 0 && cmd.HasSubCommands() {
			t.Errorf("%s names %q, which is no command", path, code)
		}
	}
	err := filepath.WalkDir("../../docs", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		fenced := false
		for line := range strings.Lines(string(text)) {
			switch {
			case strings.HasPrefix(line, "```"):
				fenced = !fenced
			case fenced:
				check(path, strings.TrimPrefix(strings.TrimSpace(line), "sudo "))
			default:
				for _, m := range span.FindAllStringSubmatch(line, -1) {
					check(path, m[1])
				}
			}
		}
		return err
	})
	if err != nil || found == 0 {
		t.Errorf("docs: %v, %d commands found", err, found)
	}
}

// name is a word that may be a command; flags, files and placeholders are none.
var name = regexp.MustCompile(`^[a-z]+$`)
