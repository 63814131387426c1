// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package docs reads the repository's pages. It checks that every link leads to a file or heading, that the map of
// docs/ misses no page, and that each make target that a page or a workflow names exists.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/coco-shim/coco/tests/harness"
)

// skipped are directories without pages of ours.
var skipped = []string{".git", "bin", "dist", "testdata", "vendor"}

func TestNoLinkIsDead(t *testing.T) {
	for _, page := range files(t, ".md") {
		for _, link := range links(read(t, page)) {
			if problem := follow(t, page, link); problem != "" {
				t.Errorf("%s: link %s: %s", page, link, problem)
			}
		}
	}
}

func TestTheMapMissesNoPage(t *testing.T) {
	const index = "docs/README.md"
	listed := links(read(t, index))
	for _, page := range files(t, ".md") {
		name, below := strings.CutPrefix(page, "docs/")
		if below && page != index && !slices.Contains(listed, name) {
			t.Errorf("%s does not list %s: add it under the reader who needs it first", index, name)
		}
	}
}

func TestEveryMakeTargetIsThere(t *testing.T) {
	makefile := read(t, "Makefile")
	check := func(file string, targets []string) {
		for _, name := range targets {
			if !regexp.MustCompile(`(?m)^` + name + `( [a-z0-9 -]*)?:`).MatchString(makefile) {
				t.Errorf("%s names make %s, which the Makefile does not have", file, name)
			}
		}
	}
	for _, page := range files(t, ".md") {
		check(page, targets(commands(read(t, page))))
	}
	for _, workflow := range files(t, ".yml") {
		var lines []string
		for line := range strings.SplitSeq(read(t, workflow), "\n") {
			line = strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "- "), "run:"))
			if list, ok := strings.CutPrefix(line, "target: ["); ok { // of a matrix
				line = "make " + strings.ReplaceAll(strings.TrimSuffix(list, "]"), ",", "")
			}
			lines = append(lines, line)
		}
		named := targets(lines)
		check(workflow, named)
		if strings.HasPrefix(workflow, ".github/workflows/") && len(named) == 0 {
			t.Errorf("%s runs no target of the Makefile", workflow)
		}
	}
}

// The reader of pages is held to samples, since every repository that passes looks alike to it.
func TestLinksAreFound(t *testing.T) {
	const page = "# A title: `code`, and more\n\n" +
		"See [one](a.md), [two](b/c.md#part) and\n[the web](https://example.com).\n![picture](p.png)\n\n" +
		"```sh\nnot [a link](x.md)\n```\n\nNor `[this](y.md)`.\n"
	if got, want := links(page), strings.Fields("a.md b/c.md#part https://example.com p.png"); !slices.Equal(got, want) {
		t.Errorf("links() = %q, want %q", got, want)
	}
	const more = "Run `sudo make demo`, or `make image IMAGE_FLAGS=--locked`:\nmake no mistake.\n" +
		"```sh\nmake build unit   # both\n```\n"
	if got, want := targets(commands(more)), strings.Fields("build unit demo image"); !slices.Equal(got, want) {
		t.Errorf("targets() = %q, want %q", got, want)
	}
	if got, want := anchors(page+"## Second_part\n## Second_part\n"), []string{
		"a-title-code-and-more", "second_part", "second_part-1",
	}; !slices.Equal(got, want) {
		t.Errorf("anchors() = %q, want %q", got, want)
	}
}

// follow says why a link of a page leads nowhere. Links to other hosts are not followed.
func follow(t *testing.T, page, link string) string {
	t.Helper()
	if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
		return ""
	}
	path, anchor, _ := strings.Cut(link, "#")
	to := page
	if path != "" {
		to = filepath.Join(filepath.Dir(page), path)
	}
	info, err := os.Stat(filepath.Join(harness.Root(), to))
	switch {
	case err != nil:
		return "no file " + to
	case anchor == "":
		return ""
	case info.IsDir() || filepath.Ext(to) != ".md":
		return to + " has no headings"
	case !slices.Contains(anchors(read(t, to)), anchor):
		return to + " has no heading #" + anchor
	}
	return ""
}

var link = regexp.MustCompile(`\]\(([^()\s]+)\)`)

// links returns where the links of a page lead, in order.
func links(page string) []string {
	var to []string
	for _, line := range prose(page) {
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(line, ""), -1) {
			to = append(to, m[1])
		}
	}
	return to
}

var (
	code    = regexp.MustCompile("`[^`]*`")
	heading = regexp.MustCompile(`^#{1,6} +(.*)$`)
)

// anchors returns the names of a page's headings, made as GitHub makes them.
func anchors(page string) []string {
	var names []string
	seen := map[string]int{}
	for _, line := range prose(page) {
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, link.ReplaceAllString(m[1], "]"))
		seen[name]++
		if n := seen[name]; n > 1 {
			name += "-" + string(rune('0'+n-1))
		}
		names = append(names, name)
	}
	return names
}

// commands returns what a page shows as code: spans in its prose, and lines of its fenced blocks.
func commands(page string) []string {
	text, fenced := split(page)
	for _, span := range code.FindAllString(strings.Join(text, "\n"), -1) {
		fenced = append(fenced, strings.Trim(span, "`"))
	}
	return fenced
}

var word = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

// targets returns the targets of those commands that call make.
func targets(commands []string) []string {
	var names []string
	for _, c := range commands {
		words := strings.Fields(strings.TrimPrefix(c, "sudo "))
		if len(words) == 0 || words[0] != "make" {
			continue
		}
		for _, w := range words[1:] {
			if !word.MatchString(w) {
				break
			}
			names = append(names, w)
		}
	}
	return names
}

// prose returns a page's lines outside of fenced blocks.
func prose(page string) []string {
	text, _ := split(page)
	return text
}

// split separates a page's lines from those of its fenced blocks.
func split(page string) (text, fenced []string) {
	inside := false
	for line := range strings.SplitSeq(page, "\n") {
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			inside = !inside
		case inside:
			fenced = append(fenced, line)
		default:
			text = append(text, line)
		}
	}
	return text, fenced
}

// files returns the repository's files with an extension, relative to its root.
func files(t *testing.T, ext string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(harness.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skipped, d.Name()) {
			return filepath.SkipDir
		}
		if !d.IsDir() && filepath.Ext(path) == ext {
			rel, err := filepath.Rel(harness.Root(), path)
			found = append(found, rel)
			return err
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("files *%s below %s: %v, %d found", ext, harness.Root(), err, len(found))
	}
	return found
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
