/* Arithmetic expressions of one variable, x: text to tokens to a tree to a number. */
#ifndef EXPR_H
#define EXPR_H

enum token_kind { TOKEN_NUMBER, TOKEN_NAME, TOKEN_SIGN, TOKEN_END, TOKEN_BAD };

struct token {
	enum token_kind kind;
	double number;		/* of TOKEN_NUMBER */
	char name[16];		/* of TOKEN_NAME */
	char sign;		/* of TOKEN_SIGN and TOKEN_BAD */
};

struct lexer {
	const char *at;
	struct token now;
};

void lexer_start(struct lexer *lexer, const char *text);
void lexer_next(struct lexer *lexer);

enum node_kind { NODE_NUMBER, NODE_X, NODE_NEGATE, NODE_BINARY, NODE_CALL };

struct node {
	enum node_kind kind;
	double number;
	char sign;			/* of NODE_BINARY: one of + - * / ^ */
	double (*function)(double);	/* of NODE_CALL */
	struct node *left, *right;
};

/* Gives NULL and a message when the text is not an expression. */
struct node *expr_parse(const char *text, char *error, unsigned long size);
double expr_eval(const struct node *node, double x);
void expr_free(struct node *node);

#endif
