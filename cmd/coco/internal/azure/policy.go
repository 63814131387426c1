// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/azure/release"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Make and judge release policies: the conditions under which a vault gives a key",
		Long: "A release policy says which claims of an attestation token a VM needs to get a key.\n\n" +
			"POLICY is a policy, the release_policy of a key, or a key as the service or az keyvault key show prints it;\n" +
			"- is stdin.",
	}
	cmd.AddCommand(genCommand(), checkCommand(), lintCommand())
	return cmd
}

// launches are the flags that name predicted launches.
type launches struct {
	files    []string
	initdata string
	cvm      bool
}

func (l *launches) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&l.files, "launch", nil, "JSON of coco measure --config … --pod … --json (repeatable)")
	f.StringVar(&l.initdata, "initdata", "", "initdata document (TOML) that the launches must be bound to")
	f.BoolVar(&l.cvm, "cvm", false, "claims of a confidential VM, which stand below x-ms-isolation-tee")
}

func genCommand() *cobra.Command {
	var l launches
	var w release.Wanted
	var minSVN uint32
	var envelope, immutable bool
	cmd := &cobra.Command{
		Use:   "gen",
		Short: "Make a release policy for predicted launches",
		Long: "Makes a policy that releases a key to the pods of --launch, and to nothing else. With --compliance and\n" +
			"--min-svn the policy names no launch digest: each guest that the attestation service finds endorsed gets the\n" +
			"key, from that version on, so that an update of the guest needs no new policy.",
		Example: "  coco measure --config coco.toml --pod pod.yaml --json > launch.json\n" +
			"  coco azure policy gen --authority https://sharedeus.eus.attest.azure.net --launch launch.json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if immutable && !envelope {
				return errors.New("--immutable goes with --envelope: it is no part of the policy itself")
			}
			if cmd.Flags().Changed("min-svn") {
				w.MinSVN = &minSVN
			}
			list, err := l.read(cmd)
			if err != nil {
				return err
			}
			w.CVM = l.cvm
			p, err := release.Generate(list, w)
			if err != nil {
				return fmt.Errorf("azure policy gen: %w", err)
			}
			for _, f := range release.Lint(p, immutable) {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", f)
			}
			if !envelope {
				return show.JSON(cmd.OutOrStdout(), p)
			}
			e, err := release.Seal(p, immutable)
			if err != nil {
				return err
			}
			return show.JSON(cmd.OutOrStdout(), e)
		},
	}
	l.flags(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&w.Authorities, "authority", nil, "URL of an attestation service (repeatable)")
	f.StringVar(&w.Compliance, "compliance", "", "x-ms-compliance-status instead of a launch digest")
	f.Uint32Var(&minSVN, "min-svn", 0, "with --compliance: lowest version of the guest")
	f.BoolVar(&envelope, "envelope", false, "print the release_policy of a key, with the policy encoded")
	f.BoolVar(&immutable, "immutable", false, "with --envelope: the policy can never be changed")
	return cmd
}

func lintCommand() *cobra.Command {
	var asJSON, immutable bool
	cmd := &cobra.Command{
		Use:   "lint POLICY",
		Short: "List what makes a release policy weak or useless",
		Long: "Lists conditions that are missing, and those that cannot mean what they say. Exit status 4 if anything is " +
			"found.",
		Example: "  az keyvault key show --vault-name shop --name pay | coco azure policy lint -",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := cli.Input(cmd, args[0], maxInput)
			if err != nil {
				return err
			}
			p, sealed, err := release.Read(b)
			if err != nil {
				return fmt.Errorf("azure policy lint %s: %w", args[0], err)
			}
			found := release.Lint(p, sealed || immutable)
			if asJSON {
				if found == nil {
					found = []release.Finding{}
				}
				err = show.JSON(cmd.OutOrStdout(), map[string]any{"findings": found})
			} else {
				for _, f := range found {
					fmt.Fprintln(cmd.OutOrStdout(), f)
				}
			}
			if len(found) > 0 && err == nil {
				err = cli.Failure{Err: fmt.Errorf("azure policy lint: %d findings", len(found)), Code: 4}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&immutable, "immutable", false,
		"the policy cannot be changed (a key's own release_policy says so)")
	return cmd
}

func checkCommand() *cobra.Command {
	var l launches
	var token string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check POLICY",
		Short: "Say which conditions of a release policy a token or a launch satisfies",
		Long: "Judges a policy for the claims of an attestation token, or for those that a launch will have. Prints for\n" +
			"each condition whether it holds, and the value that decided it. A launch does not decide all claims: the others\n" +
			"are unknown. The token's signature and times are not checked; the vault does that.\n\n" +
			"Exit status: 0 the key is released, 4 it is not, 6 the launch alone does not decide it.",
		Example: "  coco azure policy check policy.json --launch launch.json\n" +
			"  coco azure policy check policy.json --token token.jwt --json",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (token == "") == (len(l.files) == 0) {
				return errors.New("azure policy check: give either --token or --launch")
			}
			b, err := cli.Input(cmd, args[0], maxInput)
			if err != nil {
				return err
			}
			p, _, err := release.Read(b)
			if err != nil {
				return fmt.Errorf("azure policy check %s: %w", args[0], err)
			}
			claims, err := l.claims(cmd, token)
			if err != nil {
				return err
			}
			return judge(cmd, p, claims, asJSON)
		},
	}
	l.flags(cmd)
	cmd.Flags().StringVar(&token, "token", "", "file with an attestation token (JWT) or with its claims as JSON")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// judge prints the verdict on each set of claims. The worst decides the exit status.
func judge(cmd *cobra.Command, p *release.Policy, sets []release.Claims, asJSON bool) error {
	worst := release.Yes
	results := make([]release.Result, 0, len(sets))
	for _, c := range sets {
		r := p.Evaluate(c)
		worst = min(worst, r.Verdict)
		results = append(results, r)
	}
	var err error
	if asJSON {
		err = show.JSON(cmd.OutOrStdout(), map[string]any{"verdict": worst, "results": results})
	} else {
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "HOLDS\tCONDITION\tBY\tPLACE")
		for _, r := range results {
			rows(w, r)
		}
		err = w.Flush()
	}
	switch {
	case err != nil:
		return err
	case worst == release.No:
		return cli.Failure{Err: errors.New("the policy does not release the key"), Code: 4}
	case worst == release.Unknown:
		err = errors.New("the launch does not decide all conditions of the policy: the attestation service does")
		return cli.Failure{Err: err, Code: 6}
	}
	return nil
}

func rows(w *tabwriter.Writer, r release.Result) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Verdict, short(r.Condition), short(r.By), r.Path)
	for _, b := range r.Below {
		rows(w, b)
	}
}

// short cuts a value that would break the table; --json has all of it.
func short(s string) string {
	if r := []rune(s); len(r) > 72 {
		return string(r[:71]) + "…"
	}
	return s
}

// claims returns the claims of the token, or those of each launch.
func (l *launches) claims(cmd *cobra.Command, token string) ([]release.Claims, error) {
	if token != "" {
		if l.initdata != "" || l.cvm {
			return nil, errors.New("--initdata and --cvm go with --launch: a token has its claims")
		}
		b, err := cli.Input(cmd, token, maxInput)
		if err != nil {
			return nil, err
		}
		c, err := tokenClaims(b)
		if err != nil {
			return nil, fmt.Errorf("--token %s: %w", token, err)
		}
		return []release.Claims{c}, nil
	}
	list, err := l.read(cmd)
	if err != nil {
		return nil, err
	}
	var out []release.Claims
	for _, launch := range list {
		c, err := release.Predicted(launch, l.cvm)
		if err != nil {
			return nil, fmt.Errorf("--launch: %w", err)
		}
		out = append(out, c)
	}
	return out, nil
}

// tokenClaims reads the claims of a JWT, or JSON of claims.
func tokenClaims(b []byte) (release.Claims, error) {
	var c release.Claims
	b = bytes.TrimSpace(b)
	if !bytes.HasPrefix(b, []byte("{")) {
		parts := strings.Split(string(b), ".")
		if len(parts) != 3 {
			return c, errors.New("it is neither a JWT nor JSON of claims")
		}
		var err error
		if b, err = release.Base64(parts[1]); err != nil {
			return c, fmt.Errorf("claims of the JWT: %w", err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&c.Values); err != nil {
		return c, fmt.Errorf("claims: %w", err)
	}
	c.Issuer, _ = c.Values["iss"].(string)
	return c, nil
}
