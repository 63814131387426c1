// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The page's table of codes is made of the tables here.
func TestThePageExplainsEveryCode(t *testing.T) {
	const page, begin, end = "../docs/attestation.md", "<!-- codes -->\n", "<!-- end of codes -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no %q and %q", page, begin, end)
	}
	var table strings.Builder
	table.WriteString("| code | class | what holds | what to do otherwise |\n|---|---|---|---|\n")
	for _, c := range Codes() {
		e := c.Explain()
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", c, e.Class, e.Means, e.Do)
	}
	want := before + begin + table.String() + end + after
	if want == string(text) {
		return
	}
	if os.Getenv("COCO_UPDATE") == "" {
		t.Fatalf("the table of codes in %s is old: COCO_UPDATE=1 go test ./attestation makes it anew", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
