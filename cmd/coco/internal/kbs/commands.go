// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package kbs

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/attestation/broker/audit"
	"github.com/coco-shim/coco/attestation/broker/references"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

// group is a command that only has others below it.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	cmd.AddCommand(below...)
	return cmd
}

func resourceCommand(c *connection) *cobra.Command {
	var version int
	var asJSON bool
	put := &cobra.Command{
		Use:     "put REPOSITORY/TYPE/TAG FILE",
		Short:   `Store a secret ("-" reads stdin)`,
		Example: "  coco kbs resource put --cert tls.crt --token-file admin.token default/db/password password.txt",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := kbs.ParsePath(args[0])
			if err != nil {
				return err
			}
			value, err := input(cmd, args[1])
			if err != nil {
				return err
			}
			header := http.Header{}
			if version >= 0 {
				header.Set("If-Match", strconv.Quote(strconv.Itoa(version)))
			}
			_, got, err := c.ask(cmd.Context(), http.MethodPost, "/resource/"+path, value, header, nil)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is version %s\n", path, strings.Trim(got.Get("ETag"), `"`))
			}
			return err
		},
	}
	put.Flags().IntVar(&version, "if-version", -1,
		"refuse unless the secret has this version now; 0: unless there is none")
	ls := &cobra.Command{
		Use: "ls", Short: "List the names of the secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []store.Entry
			if err := c.list(cmd.Context(), "/admin/resources", &list); err != nil {
				return err
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), list)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "RESOURCE\tVERSION\tBYTES\tSTORED")
			for _, e := range list {
				fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", e.Key, e.Version, e.Size, e.Time.Format(time.RFC3339))
			}
			return t.Flush()
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return group("resource", "Store and remove secrets", put, ls, removeCommand(c))
}

func removeCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use: "rm REPOSITORY/TYPE/TAG", Short: "Remove a secret", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := kbs.ParsePath(args[0])
			if err == nil {
				_, _, err = c.ask(cmd.Context(), http.MethodDelete, "/resource/"+path, nil, nil, nil)
			}
			return err
		},
	}
}

func referenceCommand(c *connection) *cobra.Command {
	var set, expires string
	add := &cobra.Command{
		Use:   "add FILE",
		Short: `Register reference values ("-" reads stdin)`,
		Long: "Registers reference values: what coco measure --reference-values prints, or Trustee's message of type " +
			"sample.\n" +
			"--set replaces the named set, so that the old and the new launch are accepted side by side during an update.\n" +
			"Without it the values go into set " + references.Default + ", over those of the same names.",
		Example: "  coco measure --config /etc/coco/snp.toml --reference-values broker |\n" +
			"    coco kbs reference add --cert tls.crt --token-file admin.token --set release-7 --expires 2027-06-30 -",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := message(cmd, args[0], set, expires)
			if err != nil {
				return err
			}
			_, _, err = c.ask(cmd.Context(), http.MethodPost, "/reference-value", text, nil, nil)
			return err
		},
	}
	add.Flags().StringVar(&set, "set", "", "name of the set")
	add.Flags().StringVar(&expires, "expires", "", "end of validity, such as 2027-06-30 (default in a year)")
	rm := &cobra.Command{
		Use: "rm SET", Short: "Remove a set: what-if --without-set says who would lose access", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, err := c.ask(cmd.Context(), http.MethodDelete, "/admin/references/"+args[0], nil, nil, nil)
			return err
		},
	}
	return group("reference", "Register, list and remove reference values", add, referenceListCommand(c), rm)
}

func referenceListCommand(c *connection) *cobra.Command {
	var asJSON bool
	ls := &cobra.Command{
		Use: "ls", Short: "List reference values", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var sets []references.Set
			if err := c.list(cmd.Context(), "/admin/references", &sets); err != nil {
				return err
			}
			if asJSON {
				return show.JSON(cmd.OutOrStdout(), sets)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "SET\tEXPIRES\tNAME\tVALUE")
			for _, s := range sets {
				for _, name := range slices.Sorted(maps.Keys(s.Values)) {
					v, err := json.Marshal(s.Values[name])
					if err != nil {
						return err
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Name, s.Expires.Format(time.DateOnly), name, v)
				}
			}
			return t.Flush()
		},
	}
	ls.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return ls
}

// message reads a message with reference values, and adds set and end of validity.
func message(cmd *cobra.Command, path, set, expires string) ([]byte, error) {
	text, err := input(cmd, path)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: no message with reference values: %w", path, err)
	}
	if set != "" {
		m["set"] = set
	}
	if expires != "" {
		at, err := time.Parse(time.DateOnly, expires)
		if err != nil {
			if at, err = time.Parse(time.RFC3339, expires); err != nil {
				return nil, fmt.Errorf("--expires %q is no date such as 2027-06-30", expires)
			}
		}
		m["expires"] = at
	}
	return json.Marshal(m)
}

func checkCommand(c *connection) *cobra.Command {
	var tee, initdata string
	cmd := &cobra.Command{
		Use:   "check EVIDENCE",
		Short: "Ask what the broker would say of evidence in a file",
		Long: "Sends evidence in CoCo's JSON to the broker, which verifies and appraises it as if a guest had sent it, " +
			"and prints\n" +
			"claims, trust vector and status. Freshness is not checked, and there is no token.\n\n" +
			"Exit status: 0 affirming, 4 not affirming or refused, 1 other errors.",
		Example: "  coco kbs check --cert tls.crt --token-file admin.token --tee snp --initdata pod.toml evidence.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			evidence, err := input(cmd, args[0])
			if err != nil {
				return err
			}
			if !json.Valid(evidence) {
				return fmt.Errorf("%s is no JSON", args[0])
			}
			q := map[string]any{"tee": tee, "evidence": json.RawMessage(evidence)}
			if initdata != "" {
				text, err := readFile(initdata)
				if err != nil {
					return err
				}
				q["init_data"] = string(text)
			}
			text, err := c.send(cmd.Context(), http.MethodPost, "/admin/check", q)
			if err != nil {
				return err
			}
			var out struct{ Status, Reason string }
			if err := json.Unmarshal(text, &out); err != nil {
				return err
			}
			if err := printJSON(cmd.OutOrStdout(), text); err != nil {
				return err
			}
			if out.Status != "affirming" {
				return cli.Failure{Err: fmt.Errorf("the evidence is %s: %s", out.Status, out.Reason), Code: 4}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&tee, "tee", "snp", "type of the evidence: snp, tdx, tpm")
	cmd.Flags().StringVar(&initdata, "initdata", "", "initdata document of the guest")
	return cmd
}

func whatIfCommand(c *connection) *cobra.Command {
	var attestation, resource, reference, set, expires, without string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "what-if",
		Short: "Ask which guests would gain or lose access",
		Long: "Judges the last 1000 attestations since the broker's start as if a policy, reference values or the end " +
			"of a set were\n" +
			"in force, and prints those for which the status or a released secret would change. Nothing is changed.",
		Example: "  coco kbs what-if --cert tls.crt --token-file admin.token --without-set release-6",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := map[string]any{}
			for name, path := range map[string]string{"attestation_policy": attestation, "resource_policy": resource} {
				if path == "" {
					continue
				}
				text, err := readFile(path)
				if err != nil {
					return err
				}
				q[name] = string(text)
			}
			if reference != "" {
				text, err := message(cmd, reference, set, expires)
				if err != nil {
					return err
				}
				q["reference"] = json.RawMessage(text)
			}
			if without != "" {
				q["without_set"] = without
			}
			if len(q) == 0 {
				return errors.New("what-if needs a policy, reference values or a set to leave out")
			}
			text, err := c.send(cmd.Context(), http.MethodPost, "/admin/what-if", q)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), text)
			}
			return printChanges(cmd.OutOrStdout(), text)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.StringVar(&attestation, "attestation-policy", "", "file with another attestation policy")
	f.StringVar(&resource, "resource-policy", "", "file with another resource policy")
	f.StringVar(&reference, "reference", "", "file with reference values that would be added")
	f.StringVar(&set, "set", "", "the set that they would replace")
	f.StringVar(&expires, "expires", "", "its end of validity")
	f.StringVar(&without, "without-set", "", "set that would be gone")
	return cmd
}

func auditCommand() *cobra.Command {
	var head string
	verify := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify the hash chain of an audit log",
		Long: "Verifies the chain of an audit log, and prints how many entries it has and the hash of the last one. " +
			"Keep both in\n" +
			"another place: with --head they prove later that no line was cut off and the chain was not made anew.",
		Example: "  coco kbs audit verify /var/lib/coco-kbs/audit.log --head 4711:9f86d0…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var known []audit.Head
			if head != "" {
				number, hash, _ := strings.Cut(head, ":")
				n, err := strconv.ParseUint(number, 10, 64)
				if err != nil || len(hash) != 64 {
					return fmt.Errorf("--head %q is not a number and a hash such as 4711:9f86…", head)
				}
				known = append(known, audit.Head{Number: n, Hash: hash})
			}
			r, err := verifyAudit(args[0], known...)
			if err != nil {
				return cli.Failure{Err: err, Code: 3}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d entries, head %d:%s\n", r.Head.Number, r.Head.Number, r.Head.Hash)
			if r.Incomplete > 0 || r.Tail > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%d lines were cut short by crashes, %d bytes at the end\n", r.Incomplete, r.Tail)
			}
			return nil
		},
	}
	verify.Flags().StringVar(&head, "head", "", "number and hash of an entry that must be there")
	return group("audit", "Verify the audit log", verify)
}

// encodePolicy is the body that sets a policy.
func encodePolicy(text []byte) map[string]string {
	return map[string]string{
		"type": "rego", "policy_id": "default_cpu", "policy": base64.RawURLEncoding.EncodeToString(text),
	}
}
