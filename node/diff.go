// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coco-shim/coco/node/txn"
)

// describe is the text of --dry-run: the files of others as a diff, our own directories and links as lines.
func (n *Node) describe(p *plan) string {
	var s strings.Builder
	for _, t := range p.Add {
		fmt.Fprintf(&s, "add %s (%d files)\n", t.Path, len(t.Files))
	}
	for _, c := range p.Changes {
		switch {
		case strings.HasPrefix(c.Path, n.Prefix+"/"):
		case c.After != nil && c.After.Link != "":
			fmt.Fprintf(&s, "link %s -> %s\n", c.Path, c.After.Link)
		case c.After != nil && c.After.Mode.IsDir():
			fmt.Fprintf(&s, "make %s\n", c.Path)
		case c.After == nil && c.Before != nil && (c.Before.Mode.IsDir() || c.Before.Link != ""):
			fmt.Fprintf(&s, "remove %s\n", c.Path)
		default:
			s.WriteString(diff(c))
		}
	}
	for _, dir := range p.Remove {
		fmt.Fprintf(&s, "remove %s\n", dir)
	}
	for _, name := range p.Restart {
		for _, e := range n.Engines {
			if e.Name() == name {
				fmt.Fprintf(&s, "restart %s: %s\n", name, e.How())
			}
		}
	}
	return s.String()
}

// around is how many lines around a difference are shown.
const around = 3

// diff is the change of a file as a unified diff of one hunk: from the first line that differs to the last.
func diff(c txn.Change) string {
	a, b := lines(c.Before), lines(c.After)
	from := 0
	for from < len(a) && from < len(b) && a[from] == b[from] {
		from++
	}
	endA, endB := len(a), len(b)
	for endA > from && endB > from && a[endA-1] == b[endB-1] {
		endA, endB = endA-1, endB-1
	}
	first := max(0, from-around)
	tail := min(around, len(a)-endA)
	var s strings.Builder
	fmt.Fprintf(&s, "--- %s\n+++ %s\n", name(c.Before, c.Path), name(c.After, c.Path))
	fmt.Fprintf(&s, "@@ -%s +%s @@\n", span(first, endA+tail), span(first, endB+tail))
	put := func(mark string, lines []string) {
		for _, l := range lines {
			s.WriteString(mark + l)
			if !strings.HasSuffix(l, "\n") {
				s.WriteString("\n\\ No newline at end of file\n")
			}
		}
	}
	put(" ", a[first:from])
	put("-", a[from:endA])
	put("+", b[from:endB])
	put(" ", a[endA:endA+tail])
	return s.String()
}

// lines returns the lines of a file, each with its line break.
func lines(f *txn.File) []string {
	if f == nil {
		return nil
	}
	return slices.Collect(strings.Lines(string(f.Data)))
}

func name(f *txn.File, path string) string {
	if f == nil {
		return "/dev/null"
	}
	return filepath.Clean(path)
}

// span is a range of lines, as diff writes it.
func span(first, end int) string {
	if end == first {
		return fmt.Sprintf("%d,0", first)
	}
	return fmt.Sprintf("%d,%d", first+1, end-first)
}
